"""Whether read models are what the log says."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Engine

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.determinism.checking import DeterminismCheck
from datapatterns.cqrs.determinism.reports import Determinism
from datapatterns.cqrs.in_redis.redis_projecting import RedisRunner
from datapatterns.cqrs.in_redis.redis_verifying import RedisReplay, verify_redis
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.tables.differences import Verification
from datapatterns.cqrs.tables.sampling import Wanted
from datapatterns.cqrs.tables.set_projecting import SetRunner
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.cqrs.tables.verifying import TableVerifier
from datapatterns.event_sourcing.store import EventStore


class Verifying(ABC):
    """The part of `Projections` that compares read models with the log."""

    __slots__ = ()

    store: EventStore
    clock: Clock

    @property
    @abstractmethod
    def _source(self) -> EventStore:
        """Return the store as runners read it."""

    @abstractmethod
    def _runner(
        self, projection: type[AnyProjection], page_events: int | None
    ) -> RedisRunner | TableRunner | SetRunner: ...

    def verify(  # noqa: PLR0913 -- how much is compared, how, and who is told of it
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        sample: float | None = None,
        seed: int | None = None,
        page_events: int | None = None,
        limit: int = 20,
        on_page: Callable[[ProjectionProgress], None] = lambda _: None,
    ) -> Verification:
        """Compare the read model with a replay of the log as of the same position.

        The replay of a table is a temporary table, that of Redis a dict in memory. Runners go on
        all the while. A version that is ready, or on standby, is compared in its own tables; to
        swap those waits until the rows are compared. Two connections are needed.

        Args:
            engine: Where the read model is.
            projection: What to verify, in the version that is declared.
            sample: A share of all keys, such as 0.01, or as an integer about how many rows. Only
                these are folded and compared, which spares memory and writes; all events are
                read nevertheless. Unless given, all of them.
            seed: Which keys a sample has; others each time unless given.
            page_events: How many events are applied at once.
            limit: How many differences to return at most.
            on_page: Called after each page of the log, for a progress bar.

        Raises:
            ProjectionDefinitionError: A sample is asked for of what statements move on.
            ProjectionStoppedError: An event cannot be applied.
            ProjectionVersionError: Another version built what is in the table.
            ReadModelBuildingError: It was never run, or is not whole.
            ReadModelMovedError: It was promoted, or switched, meanwhile; verify it again.
            ValueError: ``limit``, ``sample`` or ``seed`` is not what it should be.
        """
        if limit < 1:
            raise ValueError(f"{limit} differences would look like none; ask for at least 1")
        wanted = Wanted(sample, seed)
        began = self.clock.monotonic()
        runner = self._runner(projection, page_events)
        if isinstance(runner, RedisRunner):
            replay = RedisReplay(
                self._source, runner.projection, runner.page_events, wanted=wanted, on_page=on_page
            )
            found = verify_redis(engine, replay, runner.model, limit=limit)
        else:
            found = TableVerifier(
                self._source, runner.projection, runner.page_events, limit, wanted, on_page
            ).run(engine)
        return replace(found, seconds=self.clock.monotonic() - began)

    def check_determinism(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        page_events: int | None = None,
        other_process: bool = True,
        on_page: Callable[[ProjectionProgress], None] = lambda _: None,
    ) -> Determinism:
        """Fold the whole log more than once, page by page; return the first difference it made.

        Each page is folded from the same state: once; again, by a new instance, while somebody
        watches whether the clock or chance is asked; in smaller pages; and in another process,
        whose sets have another order. What the read model holds is neither read nor changed.
        Statements are run twice, in pages of two sizes.

        Price: about ten times that of a replay, and temporary tables, or memory for Redis.

        Args:
            engine: Where the read model is.
            projection: What to check.
            page_events: How many events a page has.
            other_process: Whether to fold in another process; it must be able to import the
                projection, and what rows hold must get there as it is, or that is left out and
                the report says why.
            on_page: Called after each page of the log, for a progress bar.

        Raises:
            ProjectionStoppedError: An event cannot be applied.
        """
        began = self.clock.monotonic()
        runner = self._runner(projection, page_events)
        found = DeterminismCheck(
            self._source, projection, runner.page_events, other_process, on_page
        ).run(engine)
        return replace(found, seconds=self.clock.monotonic() - began)
