"""What builds versions of read models, puts them in the place of each other, and drops them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine

from datapatterns.clock import Clock
from datapatterns.cqrs.building.building import BuildManner, TableBuild
from datapatterns.cqrs.building.building_progress import BuildProgress, measured
from datapatterns.cqrs.building.promoting import CatchUpTo, Patience, Promotion
from datapatterns.cqrs.building.rebuilding import TableRebuild
from datapatterns.cqrs.building.retiring import retire_version
from datapatterns.cqrs.building.version_records import read_versions
from datapatterns.cqrs.definition import AnyProjection, RedisProjection
from datapatterns.cqrs.in_redis.redis_connection import redis_answers
from datapatterns.cqrs.in_redis.redis_projecting import RedisRunner, begin_again, forget_version
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.set_projecting import SetRunner
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.errors import PromotionRefusedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import fresh_reads, reading, resuming


class Versioning(ABC):
    """Builds, promotes and retires versions; `Projections` can move them on, too."""

    __slots__ = ()

    store: EventStore
    clock: Clock
    declared: Sequence[type[AnyProjection]]

    @property
    @abstractmethod
    def _source(self) -> EventStore: ...

    @abstractmethod
    def catch_up(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        until: Position | None = None,
        timeout_seconds: float = 60.0,
        page_events: int | None = None,
        on_page: Callable[[ProjectionProgress], None] = lambda _: None,
    ) -> ProjectionProgress:
        """Return when the read model has reached ``until``."""

    @abstractmethod
    def _terms(self) -> LeaseTerms: ...

    @abstractmethod
    def _runner(
        self, projection: type[AnyProjection], page_events: int | None
    ) -> RedisRunner | TableRunner | SetRunner: ...

    def rebuild(  # noqa: PLR0913 -- how a build is done, and who is told of it
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        promote: bool = True,
        workers: int = 1,
        rows_max: int = 1_000_000,
        timeout_seconds: float = 3_600.0,
        page_events: int | None = None,
        on_page: Callable[[ProjectionProgress], None] = lambda _: None,
        on_progress: Callable[[BuildProgress], None] = lambda _: None,
    ) -> ProjectionProgress:
        """Build the read model anew from the first event, beside what is read meanwhile.

        A version in tables that is not live is built in tables of its own, from the mapped
        classes as they are now; whatever was there of it before is dropped. It is folded in
        memory and written by COPY, then indexed; then it follows the log, and takes the place of
        the live one. Runners of the live version go on all the time.

        The live version itself, and the first one, are mended in place: only rows that differ are
        written, and readers keep the old ones until all new ones are there. Its other runners are
        fenced off meanwhile. In Redis readers are told by `ReadModelBuildingError` that the
        version is being built; raise the version to spare them that.

        Args:
            engine: Where the events and the checkpoints are. With several workers it must lend
                as many connections.
            projection: What to rebuild.
            promote: Unless it is, the new version stays ``ready``, to be verified and promoted.
            workers: How many threads fold at once, each its share of the keys. Each reads the
                whole log, so it helps only where handlers take most of the time.
            rows_max: With more rows than this a worker goes on page by page, which takes longer.
            timeout_seconds: How long catching up, promoting, and all of it in Redis may take.
            page_events: How many events are applied at once; unless given, as many as the
                projection's class says.
            on_page: Called after each page.
            on_progress: Called as often, with how far the build is and how long it will take.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; rebuild it again.
            LeaseLostError: Somebody else rebuilds it meanwhile; what is read stays.
            MissingRightsError: The role may not do it; it takes the owner of the tables.
            ProjectionDefinitionError: A table refuses a row that the log gives, is the read
                model of another projection, or is none that could be swapped.
            ProjectionStoppedError: An event cannot be applied; what is read stays.
            PromotionTimeoutError: It is ready, but could not be promoted in time.
            ReadModelBehindError: The time has passed; `catch_up` goes on.
            ReadModelInUseError: It is ready, but something is bound to the live table.
        """
        runner = self._runner(projection, page_events)
        if isinstance(runner, RedisRunner):
            self._begin_again(engine, runner)
            return self.catch_up(
                engine,
                projection,
                timeout_seconds=timeout_seconds,
                page_events=page_events,
                on_page=measured(self._end_of_log(engine), self.clock, on_page, on_progress),
            )
        manner = BuildManner(workers, rows_max, runner.page_events, on_page, on_progress)
        build = TableBuild(
            self._source, runner.projection, runner, self._terms(), manner, self.clock
        )
        built = build.run(engine)
        if built is None:
            tell = measured(self._end_of_log(engine), self.clock, on_page, on_progress)
            return TableRebuild(
                self._source, runner.projection, self._terms(), runner.page_events, tell
            ).run(engine)
        done = self.catch_up(
            engine, projection, timeout_seconds=timeout_seconds, page_events=page_events
        )
        if promote:
            self.promote(engine, projection, timeout_seconds=timeout_seconds)
        return ProjectionProgress(built.events + done.events, done.position, done.caught_up)

    def promote(
        self,
        engine: Engine,
        projection: type[AnyProjection],
        *,
        timeout_seconds: float = 60.0,
        lock_seconds: float = 0.05,
    ) -> bool:
        """Let a version that was built beside the live one take its place; queries do not change.

        Readers see no error, no empty table and no step back. The one that was live goes on in
        tables of its own as long as its runners run, so that `rollback` can put it back.

        Args:
            engine: Where the tables are; its role must own them.
            projection: The version to promote.
            timeout_seconds: How long it may take.
            lock_seconds: How long readers may have to wait at most, at each of as many attempts
                as it takes, for others who use a table for longer.

        Returns:
            Whether it was not live before.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            MissingRightsError: The role may not do it.
            ProjectionStoppedError: An event cannot be applied, so the version is not near.
            PromotionRefusedError: It was not built, or cannot take that place.
            PromotionTimeoutError: It could not be done in time; the error names who is in the way.
            ReadModelInUseError: Views, foreign keys or the like are bound to a table.
            StandbyBehindError: Nobody moves it on to where the live one is.
        """
        self._near(engine, projection, timeout_seconds)
        return self._promotion(
            projection.name,
            projection.version,
            exact=projection.messages,
            patience=Patience(timeout_seconds, lock_seconds),
            catch_up=self._catching_up(engine, projection),
        ).run(engine)

    def would_replace(self, engine: Engine, projection: type[AnyProjection]) -> int | None:
        """Return whose place `promote` would take, if it can; None if this version is live.

        Raises:
            PromotionRefusedError: It was not built, or cannot take that place.
            ReadModelInUseError: Views, foreign keys or the like are bound to a table.
        """
        promotion = self._promotion(
            projection.name,
            projection.version,
            exact=projection.messages,
            patience=Patience(0, 1),
            catch_up=None,
        )
        with fresh_reads(engine) as conn:
            replaced = promotion.plan(conn)
        return None if replaced is None else replaced.version

    def rollback(
        self,
        engine: Engine,
        projection: type[AnyProjection] | str,
        *,
        version: int | None = None,
        allow_older: bool = False,
        timeout_seconds: float = 60.0,
        lock_seconds: float = 0.05,
    ) -> int:
        """Put the version back that was live before; return which one that is.

        Args:
            engine: Where the tables are; its role must own them.
            projection: Any version of it, or its name. If the class of the version to go back to
                is given or declared, this moves it on as far as needed; else its runners have to.
            version: Which one, where there are several that were live.
            allow_older: It may be older than what readers have seen: they see a step back. Not for
                a projection that sends messages, which would send some of them again.
            timeout_seconds: How long it may take.
            lock_seconds: How long readers may have to wait at most, at each attempt.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            MissingRightsError: The role may not do it.
            PromotionRefusedError: There is no such version.
            PromotionTimeoutError: It could not be done in time.
            ReadModelInUseError: Views, foreign keys or the like are bound to a table.
            StandbyBehindError: It is older than what readers have seen.
        """
        name = projection if isinstance(projection, str) else projection.name
        target = self._standby(engine, name, version)
        code = self._code(projection, name, target)
        sends = self._sends(projection, name)
        if allow_older and sends:
            raise PromotionRefusedError(
                name,
                target,
                "it sends messages, and from an older position it would send again what was sent"
                " since; run it until it is where the live one is, and go back without"
                " allow_older",
            )
        if code is not None and not allow_older:
            self._near(engine, code, timeout_seconds)
        self._promotion(
            name,
            target,
            # Who may send messages must not lose any between two positions.
            exact=not allow_older
            and (sends or (sends is None and not self._is_in_redis(engine, name, target))),
            older=allow_older,
            patience=Patience(timeout_seconds, lock_seconds),
            catch_up=None if code is None else self._catching_up(engine, code),
        ).run(engine)
        return target

    def retire(
        self, engine: Engine, projection: type[AnyProjection] | str, version: int | None = None
    ) -> list[str]:
        """Drop the tables, or the keys in Redis, of a version that is not live.

        Args:
            engine: Where the tables are; its role must own them.
            projection: The version to retire, any version of it, or its name. One in Redis is
                cleared with its class only.
            version: Which one; unless given, that of the class.

        Returns:
            The tables that were dropped.

        Raises:
            CommitUnansweredError: The connection broke during a COMMIT; do it again.
            MissingRightsError: The role may not do it.
            PromotionRefusedError: It is live, or there is none.
        """
        if isinstance(projection, str):
            if version is None:
                raise ValueError(f"which version of {projection}? give version=")
            name = projection
        else:
            name, version = projection.name, version or projection.version
        code = self._code(projection, name, version)
        clear = None
        if code is not None and issubclass(code, RedisProjection):
            runner = self._runner(code, None)
            assert isinstance(runner, RedisRunner)
            clear = self._clearing(runner)
        elif self._is_in_redis(engine, name, version):
            raise PromotionRefusedError(
                name, version, "it is in Redis; give its class, which says under which keys"
            )
        return retire_version(engine, self.store.schema, name, version, clear=clear)

    def _end_of_log(self, engine: Engine) -> Position:
        with fresh_reads(engine) as conn, reading(conn):
            return self._source.high_water_mark(conn)

    def _begin_again(self, engine: Engine, runner: RedisRunner) -> None:
        again = f"the new build of projection {runner.projection.name}"
        with redis_answers(), fresh_reads(engine) as conn, resuming(conn, again):
            begin_again(conn, self._source, runner.projection, runner.model, self._terms())
        failpoint("redis-rebuild.begun")

    def _clearing(self, runner: RedisRunner) -> Callable[[Connection], None]:
        def clear(conn: Connection) -> None:
            with redis_answers():
                forget_version(conn, runner, self._terms())

        return clear

    def _near(
        self, engine: Engine, projection: type[AnyProjection], timeout_seconds: float
    ) -> None:
        # Most of it before the live version is held.
        with engine.connect() as conn:
            known = read_versions(conn, projection_tables(self.store.schema), projection.name)
        record = known.get(projection.version)
        if record is not None and record.status in ("ready", "standby"):
            self.catch_up(engine, projection, timeout_seconds=timeout_seconds)

    def _catching_up(self, engine: Engine, projection: type[AnyProjection]) -> CatchUpTo:
        def catch_up(position: Position, seconds: float) -> None:
            self.catch_up(engine, projection, until=position, timeout_seconds=seconds)

        return catch_up

    def _promotion(
        self,
        name: str,
        version: int,
        *,
        exact: bool,
        patience: Patience,
        catch_up: CatchUpTo | None,
        older: bool = False,
    ) -> Promotion:
        return Promotion(
            self.store.schema,
            name,
            version,
            exact=exact,
            older=older,
            patience=patience,
            clock=self.clock,
            catch_up=catch_up,
        )

    def _standby(self, engine: Engine, name: str, version: int | None) -> int:
        with fresh_reads(engine) as conn, reading(conn):
            known = read_versions(conn, projection_tables(self.store.schema), name)
        standing = [v for v, record in known.items() if record.status == "standby"]
        if version is not None:
            if version not in standing:
                raise PromotionRefusedError(name, version, "it was not live before; promote it")
            return version
        if len(standing) != 1:
            listed = ", ".join(map(str, standing)) or "there is none"
            advice = f"say to which version that was live before to go back: {listed}"
            raise PromotionRefusedError(name, 0 if not standing else standing[-1], advice)
        return standing[0]

    def _code(
        self, projection: type[AnyProjection] | str, name: str, version: int
    ) -> type[AnyProjection] | None:
        given = () if isinstance(projection, str) else (projection,)
        known = (p for p in (*given, *self.declared) if (p.name, p.version) == (name, version))
        return next(known, None)

    def _sends(self, projection: type[AnyProjection] | str, name: str) -> bool | None:
        given = () if isinstance(projection, str) else (projection,)
        known = [p.messages for p in (*given, *self.declared) if p.name == name]
        return any(known) if known else None  # nobody here knows

    def _is_in_redis(self, engine: Engine, name: str, version: int) -> bool:
        with fresh_reads(engine) as conn, reading(conn):
            record = read_versions(conn, projection_tables(self.store.schema), name).get(version)
        return record is not None and record.kind == "redis"
