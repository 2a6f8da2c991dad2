"""One page of the log into Redis."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from redis.exceptions import ResponseError
from sqlalchemy import Connection, text

from datapatterns.cqrs.definition import RedisProjection
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_checkpoint import DamagedError, LaterEpochError, Ticket
from datapatterns.cqrs.in_redis.redis_connection import memory_of, redis_answers
from datapatterns.cqrs.in_redis.redis_folding import fold_changes
from datapatterns.cqrs.in_redis.redis_keys import Place
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.cqrs.running.advancing import BarrierError, advance, current_barrier
from datapatterns.cqrs.running.bells import ring
from datapatterns.cqrs.running.events_elsewhere import (
    EventsElsewhere,
    begun_at,
    events_connection,
    note_followed_log,
    note_idle,
)
from datapatterns.cqrs.running.leasing import (
    Lease,
    begin_build,
    is_latest,
    release,
    take_over,
)
from datapatterns.cqrs.running.log_witness import (
    LogWitness,
    check_witness,
    read_witness,
    read_witnesses,
)
from datapatterns.cqrs.running.paging import PageOfEvents, read_page
from datapatterns.cqrs.running.parking import (
    WHOLE_EVENT,
    Unapplied,
    forget_skipped,
    has_skipped,
    skip,
)
from datapatterns.cqrs.running.progress import ProjectionProgress, longest_prefix
from datapatterns.cqrs.running.registering import promote, register_build
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.running.segments import WHOLE
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.poison import unapplied
from datapatterns.cqrs.tables.projecting import describe_stop, message_of
from datapatterns.errors import (
    EvictionPolicyError,
    ForeignReadModelError,
    LeaseLostError,
    LogChangedError,
    ProjectionDefinitionError,
)
from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import reading, resuming


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
        """Ask Redis how far it is; let it begin anew if it does not hold this build, or not all.

        Raises:
            EvictionPolicyError: Redis may drop parts of the read model.
            ForeignReadModelError: Somebody else writes under these keys.
            ProjectionDefinitionError: It was split.
            LeaseLostError: Another runner has the lease.
            LogChangedError: Redis shows events that the log has lost.
            ServerUnavailableError: Redis does not answer.
        """
        if lease.segment != WHOLE:
            raise ProjectionDefinitionError(
                self.projection.name, "in Redis it has one segment only; merge those that there are"
            )
        self._check_eviction()
        with self._ours(conn, lease):
            adopted = self.model.adopt(self._ticket(lease))
            if adopted is None or not self.model.is_complete():
                return self._begin_anew(conn, lease)
        position, witness = adopted
        try:
            with resuming(conn, self._resource):
                self._check_log(conn, witness, position)
                return self._confirm(conn, lease, position)
        except LogChangedError as error:
            with resuming(conn, self._resource):
                self._advance(conn, lease, lease.position, error=_describe(error))
            raise

    @redis_answers()
    def page(
        self, conn: Connection, lease: Lease, *, persist: bool = True
    ) -> tuple[Lease, ProjectionProgress]:
        """Read a page in one transaction, apply it in Redis, confirm it in another.

        If something of what it would change has gone in Redis, the build begins anew instead.

        Raises:
            LeaseLostError: Another runner has the lease, or Redis is not where it was.
            LogChangedError: Redis shows events that the log has lost.
            ProjectionStoppedError: An event cannot be applied; those before it were.
            ServerUnavailableError: Redis did not answer; whether it applied the page, `begin`
                finds out.
        """
        after = lease.position
        with resuming(conn, self._resource):
            asked_at = begun_at(conn, self.store)
            page = read_page(
                conn,
                self.store,
                self.projection,
                lease.read_to,
                self.page_events,
                until=current_barrier(conn, self._tables, lease),
            )
            if page.checkpoint == after:
                if page.caught_up:
                    note_idle(conn, self._tables, self.store, lease)
                return lease, ProjectionProgress(0, after, page.caught_up)
            if not page.events and not persist:
                seen_to = replace(lease, seen=page.checkpoint)
                return seen_to, ProjectionProgress(0, page.checkpoint, page.caught_up)
            with events_connection(self.store, conn) as events:
                seen = read_witnesses(events, self.store.schema, after, page.checkpoint)
            lease = self._confirm(conn, lease, after)
            was_skipped = self._skips and has_skipped(
                conn, self._tables, lease, until=page.checkpoint
            )
        failpoint("redis-projection.page-read")
        with self._ours(conn, lease):
            try:
                lease, done = self._apply(conn, lease, page, seen, was_skipped=was_skipped)
            except DamagedError:
                return self._begin_anew(conn, lease), ProjectionProgress(0, START, caught_up=False)
        if isinstance(self.store, EventsElsewhere):  # readers cannot ask the log
            with resuming(conn, self._resource):
                note_followed_log(
                    conn, self._tables, self.store, lease, mark=page.mark, asked_at=asked_at
                )
        return lease, done

    def remove(self, conn: Connection, lease: Lease) -> None:
        """Remove the read model from Redis, for good."""
        with self._ours(conn, lease):
            self.model.remove(self._ticket(lease))

    def _apply(
        self,
        conn: Connection,
        lease: Lease,
        page: PageOfEvents,
        seen: tuple[LogWitness, LogWitness],
        *,
        was_skipped: bool,
    ) -> tuple[Lease, ProjectionProgress]:
        after, (before, witness) = lease.position, seen
        length, outcome, failure = self._applicable_part(conn, lease, page, before)
        position, stopped, record = page.checkpoint, None, None
        skipped: list[Unapplied] = []
        if failure is not None and self._skips:  # the page ends with it, the next goes on behind
            poison = page.events[length]
            position = poison.position
            skipped.append(unapplied(poison, WHOLE_EVENT, failure))
        elif failure is not None:
            position = Position(max(after, page.events[length].position - 1))
            record, stopped = describe_stop(self.projection, page.events[length], failure)
        if failure is not None:
            with reading(conn):
                witness = self._witness(conn, position)
        if skipped or was_skipped:
            lease = self._note_skipped(conn, lease, skipped, position)
        ticket = self._ticket(lease)
        if not self.model.apply(ticket, outcome, after=after, position=position, witness=witness):
            raise LeaseLostError(self._resource, epoch=lease.epoch)
        failpoint("redis-projection.page-applied")
        caught_up = page.caught_up and failure is None
        with resuming(conn, self._resource):
            lease = self._advance(conn, lease, position, error=record)
            if caught_up:
                lease = promote(conn, self._tables, lease)
        ring(self.store.schema, self.projection.name)
        if stopped is not None:
            raise stopped from stopped.__cause__
        return lease, ProjectionProgress(length, position, caught_up)

    def _note_skipped(
        self, conn: Connection, lease: Lease, skipped: Sequence[Unapplied], position: Position
    ) -> Lease:
        # Before Redis moves on: afterwards, nobody might be left to tell.
        with resuming(conn, self._resource):
            forget_skipped(conn, self._tables, lease, until=position)
            skip(conn, self._tables, lease, skipped)
            lease = self._confirm(conn, lease, lease.position)
        failpoint("redis-projection.skip-noted")
        return lease

    def _begin_anew(self, conn: Connection, lease: Lease) -> Lease:
        with resuming(conn, self._resource):
            target = self.store.high_water_mark(conn)
            lease = self._confirm(conn, lease, START)
        failpoint("redis-projection.build-confirmed")
        self.model.reset(self._ticket(lease), target=target)
        return lease

    def _confirm(self, conn: Connection, lease: Lease, position: Position) -> Lease:
        # A durable commit between reading events and showing them outside: PostgreSQL may lose,
        # in a crash, what was committed with synchronous_commit off and positions drawn but
        # never flushed. Whatever lies before this commit in its log, it cannot lose any more.
        conn.execute(text("SET LOCAL synchronous_commit = on"))
        return self._advance(conn, lease, position)

    def _advance(
        self,
        conn: Connection,
        lease: Lease,
        position: Position,
        *,
        error: Mapping[str, Any] | None = None,
    ) -> Lease:
        try:
            return advance(conn, self._tables, lease, position, error=error)
        except BarrierError as barred:
            # Set while a page was under way: Redis shows it already, the row follows later.
            raise LeaseLostError(self._resource, epoch=lease.epoch) from barred

    def _applicable_part(
        self, conn: Connection, lease: Lease, page: PageOfEvents, before: LogWitness
    ) -> tuple[int, Outcome, Exception | None]:
        outcomes: dict[int, Outcome] = {}

        def attempt(length: int) -> Exception | None:
            try:
                changes = fold_changes(self.store, self.projection, page.events[:length])
            except Exception as error:  # noqa: BLE001 -- the application's code may raise anything
                return error
            stored = self._stored(conn, lease, changes.additions(), before)
            try:
                outcomes[length] = changes.resolved(stored)
            except Exception as error:  # noqa: BLE001 -- documents are folded by its code, too
                return error
            return None

        length, failure = longest_prefix(len(page.events), attempt)
        if length not in outcomes:
            outcomes[0] = Outcome()
            self._stored(conn, lease, [], before)
        return length, outcomes[length], failure

    def _stored(
        self, conn: Connection, lease: Lease, places: Sequence[Place], before: LogWitness
    ) -> dict[Place, str]:
        found = self.model.stored(places, lease.position)
        if found is None or found.witness is None:
            raise LeaseLostError(self._resource, epoch=lease.epoch)
        if found.witness != before:  # the log has lost its end since this lease began, or a purge
            with reading(conn):
                self._check_log(conn, found.witness, lease.position)
        return found.places

    def _check_log(self, conn: Connection, witness: LogWitness, position: Position) -> None:
        name, schema = self.projection.name, self.store.schema
        with events_connection(self.store, conn) as events:
            check_witness(events, schema, witness, position, followed_by=name)

    def _witness(self, conn: Connection, position: Position) -> LogWitness:
        with events_connection(self.store, conn) as events:
            return read_witness(events, self.store.schema, position)

    @property
    def _skips(self) -> bool:
        return self.projection.on_poison == "skip"

    def _check_eviction(self) -> None:
        memory = memory_of(self.model.client, self.model.keys.checkpoint)
        policy = str(memory.get("maxmemory_policy", ""))
        if memory.get("maxmemory") and policy.startswith("allkeys-"):
            raise EvictionPolicyError(policy)

    @contextmanager
    def _ours(self, conn: Connection, lease: Lease) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:  # flushed while it was cleared
            raise LeaseLostError(self._resource, epoch=lease.epoch) from error
        except LaterEpochError as error:
            with reading(conn):
                if not is_latest(conn, self._tables, lease):
                    raise LeaseLostError(self._resource, epoch=lease.epoch) from error
            raise ForeignReadModelError(
                self.projection.name, "a lease wrote it that PostgreSQL has not given yet"
            ) from error
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise ForeignReadModelError(
                self.projection.name, "what lies where its checkpoint belongs is none"
            ) from error

    @staticmethod
    def _ticket(lease: Lease) -> Ticket:
        return Ticket(lease.build, lease.epoch)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _resource(self) -> str:
        return f"projection {self.projection.name}"


def _describe(error: LogChangedError) -> dict[str, Any]:
    return {
        "position": error.position,
        "event_type": "",
        "error": type(error).__name__,
        "message": message_of(error),
    }


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


def forget_version(conn: Connection, runner: RedisRunner, terms: LeaseTerms) -> None:
    """Remove a version from Redis, under a lease that no other runner has.

    Raises:
        ForeignReadModelError: A lease wrote it that PostgreSQL has not given yet.
        LeaseLostError: Another runner has the lease.
    """
    tables = projection_tables(runner.store.schema)
    with resuming(conn, f"the end of projection {runner.projection.name}"):
        leases = take_over(
            conn,
            tables,
            runner.projection,
            owner=terms.owner,
            seconds=terms.seconds,
            all_versions=False,
        )
    for lease in leases:
        runner.remove(conn, lease)
