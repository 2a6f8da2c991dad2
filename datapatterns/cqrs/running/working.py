"""One of several workers: takes its share of the segments and moves them on, in bounded steps."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.claiming import (
    SegmentRow,
    claim_segments,
    heartbeat,
    moved_by_workers,
    owners_of,
    read_segments,
    read_workers,
    record_error,
    release_all,
    renew,
    say_goodbye,
)
from datapatterns.cqrs.running.enlisting import Enlisted
from datapatterns.cqrs.running.events_elsewhere import events_connection
from datapatterns.cqrs.running.holding import Held, Holdings
from datapatterns.cqrs.running.leasing import release
from datapatterns.cqrs.running.pacing import PERSIST_SECONDS, Rests
from datapatterns.cqrs.running.runners import LeaseTerms, Runner
from datapatterns.cqrs.running.sharing import SegmentKey, Version, plan_shares
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.projecting import message_of
from datapatterns.errors import CommitUnansweredError, LeaseLostError, ProjectionStoppedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.log.high_water import read_hint
from datapatterns.event_sourcing.log.same_server import life_of
from datapatterns.event_sourcing.store import EventStore
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import fresh_reads, looking, reading, resuming

logger = logging.getLogger(__name__)

BEAT_SECONDS_MAX: Final = 1.0
"""So often a worker looks, at least, what its share is."""

HEARTBEATS_PER_LEASE: Final = 3

PRESENT_SECONDS_MIN: Final = 3 * BEAT_SECONDS_MAX
"""For so long, at least, is a worker there that was heard of.

By then it has looked again, and taken what others with short leases leave to it. It may say so
much less often than those expect of each other.
"""

LONG_PAGE_LEASES: Final = 20
"""For so many leases one page may take. A handler that hangs must not keep its segment for ever."""


@dataclass(frozen=True, slots=True)
class WorkDone:
    """What one step of a worker has done.

    Attributes:
        events: How many events met a handler.
        pages: How many segments were looked at.
        held: How many segments it holds.
        pause_seconds: When to step again, unless the log moves before.
    """

    events: int
    pages: int
    held: int
    pause_seconds: float


@dataclass(slots=True, eq=False)
class ProjectionWorker:
    """Moves its share of what is declared on; any number of them share the rest.

    Several threads may use one, each with a connection of its own: `beat` and `look` by one of
    them, `turn` by all. Whoever has one thread only calls `step`.

    Attributes:
        store: Whose events.
        declared: What this worker's code knows, in which versions.
        terms: Its name, and for how long it keeps segments.
        clock: What pauses go by.
        runner_of: Makes what moves a projection on.
        observer: Is told of events, pages, failures and fenced pages.
    """

    store: EventStore
    declared: Sequence[type[AnyProjection]]
    terms: LeaseTerms
    clock: Clock
    runner_of: Callable[[type[AnyProjection]], Runner]
    observer: Observer = SILENT
    _holdings: Holdings = field(init=False, repr=False)
    _enlisted: Enlisted = field(init=False, repr=False)
    _rests: Rests = field(default_factory=Rests, init=False, repr=False)
    _failures: dict[Version, Exception] = field(default_factory=dict, init=False, repr=False)
    _beating: Lock = field(default_factory=Lock, init=False, repr=False)
    _beat_due: float = field(default=float("-inf"), init=False, repr=False)
    _heartbeat_due: float = field(default=float("-inf"), init=False, repr=False)
    _told: frozenset[Version] = field(default=frozenset(), init=False, repr=False)
    _hint: Position | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._holdings = Holdings(self.clock)
        self._enlisted = Enlisted(self.store, self.declared)

    @property
    def troubles(self) -> Mapping[Version, Exception]:
        """Why versions are not moved on by this worker now."""
        return self._enlisted.errors | self._failures

    def step(self, engine: Engine) -> WorkDone:
        """Do what is due, at most a page of each segment.

        Raises:
            DBAPIError: The database does not answer; step again after a while.
        """
        events = pages = 0
        with fresh_reads(engine) as conn:
            self.beat(conn)
            self.look(conn)
            for _ in self._holdings.all():
                applied = self.turn(conn)
                if applied is None:
                    break
                events, pages = events + applied, pages + 1
        return WorkDone(events, pages, len(self._holdings.all()), self.pause_seconds())

    def beat(self, conn: Connection) -> None:
        """Say that this worker is alive, take what is its share, give back what is not; if due."""
        with self._beating:
            now = self.clock.monotonic()
            if now < self._beat_due:
                return
            self._beat_due = now + min(self.terms.seconds / HEARTBEATS_PER_LEASE, BEAT_SECONDS_MAX)
            self._enlist(conn)
            known = frozenset(
                version
                for version in self._enlisted.known
                # After a second failure in a row: others may fare better.
                if self._rests.failures(version) <= 1 or not self._is_resting(version)
            )
            if known != self._told or now >= self._heartbeat_due:
                self._say_alive(conn, known, now)
            self._share(conn)

    def look(self, conn: Connection) -> bool:
        """Let all segments be looked at if the log may have moved; return whether it has."""
        with looking(conn), events_connection(self.store, conn) as log:
            hint = read_hint(log, schema=self.store.schema, published=False)
        moved = hint != self._hint
        self._hint = hint
        if moved:
            self._holdings.wake()
        return moved

    def turn(self, conn: Connection) -> int | None:
        """Apply a page of the segment whose turn it is; return how many events met a handler.

        None says that nothing is due. What fails is recorded, and rests while others go on.

        Raises:
            CommitUnansweredError: The connection is lost.
            DBAPIError: The connection is lost.
        """
        held = self._holdings.take_due()
        if held is None:
            return None
        try:
            return self._page(conn, held)
        except LeaseLostError as error:
            self._holdings.drop(held.key)
            self._beat_due = self.clock.monotonic()
            self._count("fenced", 1, held)
            logger.info("%s", error, extra={"projection": held.lease.name})
        except Exception as error:
            if is_lost(conn, error):
                # Whether it was applied, the checkpoint says to the next lease.
                self._holdings.drop(held.key)
                self._beat_due = self.clock.monotonic()
                raise
            self._failed(conn, held, error)
        except BaseException:  # whoever is stopped leaves
            self._holdings.drop(held.key)
            raise
        return 0

    def pause_seconds(self) -> float:
        """Return when something is due again."""
        now = self.clock.monotonic()
        return max(0.0, min(self._holdings.seconds_until_due(), self._beat_due - now))

    def wait(self, seconds_max: float) -> None:
        """Block this thread until a segment is due, or so long."""
        self._holdings.wait(seconds_max)

    def interrupt(self) -> None:
        """End all waits."""
        self._holdings.notify()

    def let_go(self, conn: Connection) -> None:
        """Take nothing more, and give back what no thread is at; the rest when its page is done."""
        with self._beating:
            self._beat_due = float("inf")
            with resuming(conn, "giving back projections"):
                say_goodbye(conn, self._tables, self.terms.owner)
            for held in self._holdings.sort_out(lambda _: False, {}):
                self._give_back(conn, held)

    def leave(self, conn: Connection) -> None:
        """Give all back at once; a page that is under way is refused at its end."""
        with self._beating:
            self._beat_due = float("inf")
            with resuming(conn, "giving back projections"):
                say_goodbye(conn, self._tables, self.terms.owner)
                release_all(conn, self._tables, self.terms.owner)
            for held in self._holdings.all():
                self._holdings.drop(held.key)

    def behind(self, conn: Connection, target: Position) -> list[Version]:
        """Return which of the versions that this worker may run have not got to ``target``.

        What appends keep, what was retired and what is being built no worker moves on.
        """
        shards = self._tables.shards
        with reading(conn):
            rows = conn.execute(
                select(shards.c.name, shards.c.version)
                .join_from(shards, self._tables.projections)
                .where(moved_by_workers(self._tables))
                .group_by(shards.c.name, shards.c.version)
                .having(func.min(shards.c.position) < target)
            ).all()
        known = self._enlisted.known
        return sorted((name, version) for name, version in rows if (name, version) in known)

    def positions(self) -> Mapping[SegmentKey, Position]:
        """Return how far each segment is that this worker holds."""
        return {held.key: held.lease.read_to for held in self._holdings.all()}

    def _page(self, conn: Connection, held: Held) -> int:
        with looking(conn):
            life = life_of(conn, self._holdings.life)
        if not self._holdings.lives(life):
            self._beat_due = self.clock.monotonic()
            return 0
        began, lease = self.clock.monotonic(), held.lease
        if not held.begun:
            lease = held.runner.begin(conn, lease)
        before, persist = lease.read_to, began - held.persisted >= PERSIST_SECONDS
        lease, done = held.runner.page(conn, lease, persist=persist)
        more = not done.caught_up and lease.read_to > before
        seconds = self.clock.monotonic() - began
        if done.events:
            self._count("events", done.events, held)
            name = "datapatterns.projection.page"
            self.observer.duration(name, seconds, projection=held.lease.name)
        if self._holdings.put_back(held, lease, moved=done.events > 0, more=more):
            self._give_back(conn, held)
        self._rests.end(held.key)
        self._rests.end(held.key.of_version)
        self._failures.pop(held.key.of_version, None)
        return done.events

    def _failed(self, conn: Connection, held: Held, error: Exception) -> None:
        stopped = isinstance(error, ProjectionStoppedError)
        name, version = held.key.of_version
        # Of an event only its segment is known to suffer.
        what = held.key if stopped else held.key.of_version
        seconds = self._rests.begin(what, now=self.clock.monotonic())
        self._failures[name, version] = error
        self._count("failed", 1, held)
        message = str(error) if stopped else f"{type(error).__name__}: {message_of(error)}"
        known = {"projection": name, "version": version, "rest_seconds": seconds}
        logger.warning("%s", message, extra=known)
        self._holdings.drop(held.key)
        with resuming(conn, f"giving back projection {name}"):
            if not stopped:  # that is recorded with what was applied before it
                record = {"error": type(error).__name__, "message": message_of(error)}
                record_error(conn, self._tables, held.lease, record)
            release(conn, self._tables, held.lease)

    def _enlist(self, conn: Connection) -> None:
        resting = frozenset(v for v in self._enlisted.versions if self._is_resting(v))
        for (name, version), error in self._enlisted.refresh(conn, without=resting).items():
            seconds = self._rests.begin((name, version), now=self.clock.monotonic())
            known = {"projection": name, "version": version, "rest_seconds": seconds}
            logger.warning("%s: %s", type(error).__name__, message_of(error), extra=known)

    def _say_alive(self, conn: Connection, known: frozenset[Version], now: float) -> None:
        seconds = self.terms.seconds
        hung = now - seconds * LONG_PAGE_LEASES
        keep = [
            held.lease
            for held in self._holdings.all()
            if not held.leaving and not (held.working and held.since < hung)
        ]
        with resuming(conn, "the heartbeat of a worker"):
            heartbeat(conn, self._tables, self.terms.owner, known, seconds=seconds)
            renew(conn, self._tables, keep)
        self._told = known
        self._heartbeat_due = now + seconds / HEARTBEATS_PER_LEASE

    def _share(self, conn: Connection) -> None:
        me, seconds = self.terms.owner, self.terms.seconds
        with reading(conn):
            rows = read_segments(conn, self._tables)
            lately = max(seconds, PRESENT_SECONDS_MIN)
            workers = read_workers(conn, self._tables, seconds=lately)
        owners, present = owners_of(rows, workers | {me: self._told}, me)
        plan = plan_shares(owners, present)
        mine = {key: rows[key] for key, worker in plan.items() if worker == me}
        for held in self._holdings.sort_out(lambda one: _was_taken(one, rows), mine):
            self._give_back(conn, held)
        kept = {held.key for held in self._holdings.all()}
        wanted = [
            key
            for key, row in mine.items()
            if key not in kept
            and (row.owner in {None, me} or row.lapsed)
            and not self._is_resting(key)
            and not self._is_resting(key.of_version)
        ]
        if wanted:
            self._claim(conn, wanted)

    def _claim(self, conn: Connection, wanted: Sequence[SegmentKey]) -> None:
        with resuming(conn, "claiming segments"):
            leases = claim_segments(
                conn, self._tables, wanted, owner=self.terms.owner, seconds=self.terms.seconds
            )
        for lease in leases:
            version = (lease.name, lease.version)
            try:
                runner = self.runner_of(self._enlisted.versions[version])
            except Exception as error:  # noqa: BLE001 -- what the application has not set up
                self._failures[version] = error
                seconds = self._rests.begin(version, now=self.clock.monotonic())
                known = {"projection": lease.name, "version": lease.version}
                logger.warning("%s", error, extra=known | {"rest_seconds": seconds})
                with resuming(conn, f"giving back projection {lease.name}"):
                    release(conn, self._tables, lease)
            else:
                self._holdings.add(lease, runner)

    def _give_back(self, conn: Connection, held: Held) -> None:
        self._holdings.drop(held.key)
        with resuming(conn, f"giving back projection {held.lease.name}"):
            release(conn, self._tables, held.lease)

    def _is_resting(self, what: SegmentKey | Version) -> bool:
        return self._rests.resting(what, now=self.clock.monotonic())

    def _count(self, what: str, amount: int, held: Held) -> None:
        name = f"datapatterns.projection.{what}"
        self.observer.count(name, amount, projection=held.lease.name)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)


def is_lost(conn: Connection, error: BaseException) -> bool:
    """Return whether ``error`` means that the database has not answered."""
    if isinstance(error, CommitUnansweredError | PoolTimeoutError) or conn.invalidated:
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _was_taken(held: Held, rows: Mapping[SegmentKey, SegmentRow]) -> bool:
    row, lease = rows.get(held.key), held.lease
    return row is None or (row.epoch, row.status) != (lease.epoch, lease.status)
