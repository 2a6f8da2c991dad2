"""One page of the log into Redis."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.in_redis.redis_changes import Place, RedisChanges
from datapatterns.cqrs.in_redis.redis_checkpoint import (
    LaterEpochError,
    RedisReadModel,
    Ticket,
    redis_answers,
)
from datapatterns.cqrs.running.leasing import (
    Lease,
    advance,
    begin_build,
    is_latest,
    release,
    take_over,
)
from datapatterns.cqrs.running.progress import ProjectionProgress, longest_prefix
from datapatterns.cqrs.running.registering import promote, register_build
from datapatterns.cqrs.running.running import LeaseTerms
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.folding import handlers_by_class
from datapatterns.cqrs.tables.projecting import PageOfEvents, describe_stop, read_page
from datapatterns.errors import (
    EvictionPolicyError,
    ForeignReadModelError,
    LeaseLostError,
)
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import reading, resuming

Outcome = dict[Place, str | None]


@dataclass(frozen=True, slots=True)
class RedisRunner:
    """Moves a `RedisProjection` on, page by page.

    PostgreSQL's row says who may run, and how far Redis was when it last answered. How far it is,
    Redis says.
    """

    store: EventStore
    projection: type[RedisProjection]
    model: RedisReadModel
    page_events: int

    @redis_answers()
    def begin(self, conn: Connection, lease: Lease) -> Lease:
        """Ask Redis how far it is; let it begin anew if it does not hold this build.

        Raises:
            EvictionPolicyError: Redis may drop parts of the read model.
            ForeignReadModelError: Somebody else writes under these keys.
            LeaseLostError: Another runner has the lease.
            ServerUnavailableError: Redis does not answer.
        """
        self._check_eviction()
        ticket = Ticket(lease.build, lease.epoch)
        try:
            position = self.model.adopt(ticket)
            if position is None:
                with resuming(conn, self._resource):
                    target = self.store.high_water_mark(conn)
                    lease = self._confirm(conn, lease, Position(0))
                failpoint("redis-projection.build-confirmed")
                self.model.reset(ticket, target=target)
                position = Position(0)
        except LaterEpochError as error:
            with reading(conn):
                if not is_latest(conn, self._tables, lease):
                    raise LeaseLostError(self._resource, epoch=lease.epoch) from error
            raise ForeignReadModelError(
                self.projection.name, "a lease wrote it that PostgreSQL has not given yet"
            ) from error
        with resuming(conn, self._resource):
            return self._confirm(conn, lease, position)

    @redis_answers()
    def page(self, conn: Connection, lease: Lease) -> tuple[Lease, ProjectionProgress]:
        """Read a page in one transaction, apply it in Redis, confirm it in another.

        Raises:
            LeaseLostError: Another runner has the lease, or Redis is not where it was.
            ProjectionStoppedError: An event cannot be applied; those before it were.
            ServerUnavailableError: Redis did not answer; whether it applied the page, `begin`
                finds out.
        """
        after = lease.position
        with resuming(conn, self._resource):
            page = read_page(conn, self.store, self.projection, after, self.page_events)
            if page.checkpoint == after:
                return lease, ProjectionProgress(0, after, page.caught_up)
            lease = self._confirm(conn, lease, after)
        failpoint("redis-projection.page-read")
        length, outcome, failure = self._applicable_part(lease, page, after)
        position, stopped, record = page.checkpoint, None, None
        if failure is not None:
            position = Position(max(after, page.events[length].position - 1))
            record, stopped = describe_stop(self.projection, page.events[length], failure)
        ticket = Ticket(lease.build, lease.epoch)
        if not self.model.apply(ticket, outcome, after=after, position=position):
            raise LeaseLostError(self._resource, epoch=lease.epoch)
        failpoint("redis-projection.page-applied")
        caught_up = page.caught_up and stopped is None
        with resuming(conn, self._resource):
            lease = advance(conn, self._tables, lease, position, error=record)
            if caught_up:
                lease = promote(conn, self._tables, lease)
        if stopped is not None:
            raise stopped from stopped.__cause__
        return lease, ProjectionProgress(length, position, caught_up)

    def _confirm(self, conn: Connection, lease: Lease, position: Position) -> Lease:
        # A durable commit between reading events and showing them outside: PostgreSQL may lose,
        # in a crash, what was committed with synchronous_commit off and positions drawn but
        # never flushed. Whatever lies before this commit in its log, it cannot lose any more.
        conn.execute(text("SET LOCAL synchronous_commit = on"))
        return advance(conn, self._tables, lease, position)

    def _applicable_part(
        self, lease: Lease, page: PageOfEvents, after: Position
    ) -> tuple[int, Outcome, Exception | None]:
        outcomes: dict[int, Outcome] = {0: {}}

        def attempt(length: int) -> Exception | None:
            try:
                changes = fold_changes(self.store, self.projection, page.events[:length])
            except Exception as error:  # noqa: BLE001 -- the application's code may raise anything
                return error
            stored = self.model.stored(changes.additions(), after)
            if stored is None:
                raise LeaseLostError(self._resource, epoch=lease.epoch)
            try:
                outcomes[length] = changes.resolved(stored)
            except ValueError as error:
                return error
            return None

        length, failure = longest_prefix(len(page.events), attempt)
        return length, outcomes[length], failure

    def _check_eviction(self) -> None:
        memory = self.model.client.info("memory")
        policy = str(memory.get("maxmemory_policy", ""))
        if memory.get("maxmemory") and policy.startswith("allkeys-"):
            raise EvictionPolicyError(policy)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _resource(self) -> str:
        return f"projection {self.projection.name}"


def fold_changes(
    store: EventStore, projection: type[RedisProjection], events: Sequence[RecordedEvent]
) -> RedisChanges:
    """Return what the handlers of ``projection`` make of ``events``."""
    instance, changes = projection(), RedisChanges()
    handlers = handlers_by_class(instance)
    for meta in events:
        for event in store.decode(meta):
            for handler in handlers.get(type(event), ()):
                handler.apply(instance, changes, event, meta)
    return changes


def begin_again(
    conn: Connection,
    store: EventStore,
    projection: type[RedisProjection],
    model: RedisReadModel,
    terms: LeaseTerms,
) -> None:
    """Make what is in Redis a build of the past, whoever writes it; the next runner begins anew.

    In the caller's transaction.
    """
    tables = projection_tables(store.schema)
    register_build(conn, tables, projection)
    (lease,) = take_over(
        conn,
        tables,
        projection,
        owner=terms.owner,
        seconds=terms.seconds,
        all_versions=False,
    )
    release(conn, tables, begin_build(conn, tables, lease, epoch_min=model.epoch()))
