"""Events that cannot be applied: find which parts of them, and do with those what was declared.

Only pages that hold such an event come here, and all pages of a segment that has parked ones.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, text

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.paging import PageOfEvents
from datapatterns.cqrs.running.parking import (
    WHOLE_EVENT,
    Unapplied,
    find_parked,
    park,
    skip,
)
from datapatterns.cqrs.running.segments import Segment
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables.folding import Step
from datapatterns.cqrs.tables.parts import (
    Keyless,
    Part,
    Place,
    apply_in_halves,
    place_of,
    plan_parts,
)
from datapatterns.cqrs.tables.projecting import (
    UnappliableError,
    apply_events,
    blaming_data,
    describe_stop,
    find_poison,
    message_of,
)
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore

ATTEMPTS_MAX: Final = 500
"""After so many tries in one page it ends, so that it is not longer than a lease."""

Takes = Callable[[Step], bool]

Known = Callable[[Collection[bytes]], set[bytes]]
"""Tells which of some rows, by digest, have events that wait."""


@dataclass(frozen=True, slots=True)
class Folding:
    """Into which rows events are folded, and whether the messages of handlers are sent."""

    store: EventStore
    projection: type[Projection]
    models: ReadModels
    segment: Segment
    sends: bool

    def apply(
        self, conn: Connection, events: Sequence[RecordedEvent], takes: Takes | None = None
    ) -> None:
        """Fold what ``takes`` lets through.

        Raises:
            UnappliableError: One of the events cannot be applied.
        """
        self._fold(conn, events, takes, check_deferred=True)

    def attempt(
        self, conn: Connection, events: Sequence[RecordedEvent], takes: Takes
    ) -> Exception | None:
        """Fold what ``takes`` lets through and keep it, or return why it cannot be."""
        savepoint = conn.begin_nested()
        try:
            self._fold(conn, events, takes, check_deferred=False)
            with blaming_data():
                check_for_now(conn)
        except UnappliableError as error:
            savepoint.rollback()
            return error
        except BaseException:
            savepoint.rollback()
            raise
        savepoint.commit()
        return None

    def _fold(
        self,
        conn: Connection,
        events: Sequence[RecordedEvent],
        takes: Takes | None,
        *,
        check_deferred: bool,
    ) -> None:
        apply_events(
            conn,
            self.store,
            self.projection,
            self.models,
            events,
            self.segment,
            takes=takes,
            sends=self.sends,
            check_deferred=check_deferred,
        )


@dataclass(slots=True)
class Dealt:
    """What became of a page.

    Attributes:
        events: How many were dealt with.
        position: Up to where.
        caught_up: Nothing further is to be read for now.
        waiting: What is parked.
        skipped: What is left out.
        error: Why it goes no further, for the row of the segment.
        stopped: The same, to be raised.
    """

    events: int
    position: Position
    caught_up: bool
    waiting: list[Unapplied] = field(default_factory=list)
    skipped: list[Unapplied] = field(default_factory=list)
    error: Mapping[str, Any] | None = None
    stopped: ProjectionStoppedError | None = None

    def record(self, conn: Connection, tables: ProjectionTables, lease: Lease) -> int:
        """Write down what was not applied; return how many events of the segment wait now."""
        skip(conn, tables, lease, self.skipped)
        # What is not shown to anybody sends no messages, so neither must it when retried.
        silent = lease.status != "live"
        return lease.parked + park(conn, tables, lease, self.waiting, silent=silent)


def known_parked(conn: Connection, tables: ProjectionTables, lease: Lease) -> Known | None:
    """Return what tells which rows have events that wait; None if none has."""
    return partial(find_parked, conn, tables, lease) if lease.parked else None


def apply_beside_parked(
    conn: Connection, folding: Folding, page: PageOfEvents, known: Known
) -> Dealt:
    """Apply a page except for rows whose events wait: theirs wait, too.

    Raises:
        UnappliableError: One of the other events cannot be applied.
    """
    parts, keyless = _plan(folding, page.events)
    if keyless:
        raise UnappliableError from keyless[0].error
    waiting = _waiting(parts, known)
    folding.apply(conn, page.events, _all_but(waiting))
    return Dealt(len(page.events), page.checkpoint, page.caught_up, list(map(_waits, waiting)))


def apply_what_can_be(
    conn: Connection,
    folding: Folding,
    page: PageOfEvents,
    *,
    after: Position,
    known: Known | None,
) -> Dealt:
    """Apply a page that begins behind ``after`` as far as its projection's policy lets it be."""
    if folding.projection.on_poison == "stop":
        return _apply_until_poison(conn, folding, page, after, known)
    return _PageInParts(conn, folding, page, after, known).run()


def _apply_until_poison(
    conn: Connection, folding: Folding, page: PageOfEvents, after: Position, known: Known | None
) -> Dealt:
    waiting = list[Part]()
    if known is not None:
        waiting = _waiting(_plan(folding, page.events)[0], known)
    takes = _all_but(waiting)
    length, failure = find_poison(
        conn, page.events, lambda events: folding.apply(conn, events, takes)
    )
    folding.apply(conn, page.events[:length], takes)
    if failure is None:
        dealt = Dealt(length, page.checkpoint, page.caught_up)
    else:
        dealt = _stopped(folding, after, page.events[length], failure, events=length)
    dealt.waiting = [_waits(part) for part in waiting if part.meta.position <= dealt.position]
    return dealt


@dataclass(slots=True)
class _PageInParts:
    conn: Connection
    folding: Folding
    page: PageOfEvents
    after: Position
    known: Known | None
    parts: list[Part] = field(default_factory=list)
    parked: set[bytes] = field(default_factory=set)
    unapplied: list[Unapplied] = field(default_factory=list)

    def run(self) -> Dealt:
        self.parts, keyless = _plan(self.folding, self.page.events)
        stop = keyless[0] if keyless and self._parks else None
        if stop is not None:  # nobody can say what would have to wait for it
            end = stop.meta.position
            self.parts = [part for part in self.parts if part.meta.position < end]
        if self.known is not None:
            self.parked = self.known({part.digest for part in self.parts})
        handled = apply_in_halves(
            len(self.parts),
            self._attempt,
            self._refuse,
            begins_event=self._begins_an_event,
            attempts_max=ATTEMPTS_MAX,
        )
        check_now(self.conn)
        if handled == len(self.parts) and stop is not None:
            count = sum(event.position < stop.meta.position for event in self.page.events)
            dealt = _stopped(self.folding, self.after, stop.meta, stop.error, events=count)
        else:
            dealt = self._dealt_with(handled)
        if self._parks:
            dealt.waiting = self.unapplied
        else:
            lost = [_whole_event(one) for one in keyless if one.meta.position <= dealt.position]
            dealt.waiting = [one for one in self.unapplied if one.error is None]
            dealt.skipped = lost + [one for one in self.unapplied if one.error is not None]
        return dealt

    @property
    def _parks(self) -> bool:
        return self.folding.projection.on_poison == "park"

    def _dealt_with(self, handled: int) -> Dealt:
        if handled == len(self.parts):
            return Dealt(len(self.page.events), self.page.checkpoint, self.page.caught_up)
        position = self.parts[handled - 1].meta.position
        count = sum(event.position <= position for event in self.page.events)
        return Dealt(count, position, caught_up=False)

    def _begins_an_event(self, place: int) -> bool:
        return self.parts[place].meta.position != self.parts[place - 1].meta.position

    def _attempt(self, start: int, end: int) -> Exception | None:
        parts = [part for part in self.parts[start:end] if part.digest not in self.parked]
        if parts:
            wanted = {part.place for part in parts}
            events = list({part.meta.position: part.meta for part in parts}.values())
            error = self.folding.attempt(self.conn, events, lambda step: place_of(step) in wanted)
            if error is not None:
                return error
        # Only now: what is undone is tried again.
        waits = [part for part in self.parts[start:end] if part.digest in self.parked]
        self.unapplied += map(_waits, waits)
        return None

    def _refuse(self, place: int, error: Exception) -> None:
        part = self.parts[place]
        self.unapplied.append(unapplied(part.meta, part.digest, error))
        if self._parks:
            self.parked.add(part.digest)


def unapplied(meta: RecordedEvent, digest: bytes, failure: Exception) -> Unapplied:
    """Return what to keep of an event that cannot be applied to a row."""
    error = (failure.__cause__ or failure) if isinstance(failure, UnappliableError) else failure
    return Unapplied(
        digest, meta.position, meta.event_type, type(error).__name__, message_of(error)
    )


def check_now(conn: Connection) -> None:
    """Check what the database would check at the commit, where nobody would know why."""
    conn.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))


def check_for_now(conn: Connection) -> None:
    """Do the same, but let what is deferred be deferred again for what follows."""
    savepoint = conn.begin_nested()
    try:
        check_now(conn)
    finally:
        savepoint.rollback()


def _plan(folding: Folding, events: Sequence[RecordedEvent]) -> tuple[list[Part], list[Keyless]]:
    return plan_parts(folding.store, folding.projection, events, folding.segment)


def _waiting(parts: Sequence[Part], known: Known) -> list[Part]:
    parked = known({part.digest for part in parts})
    return [part for part in parts if part.digest in parked]


def _all_but(waiting: Sequence[Part]) -> Takes | None:
    places: set[Place] = {part.place for part in waiting}
    return (lambda step: place_of(step) not in places) if places else None


def _waits(part: Part) -> Unapplied:
    return Unapplied(part.digest, part.meta.position, part.meta.event_type)


def _whole_event(keyless: Keyless) -> Unapplied:
    return unapplied(keyless.meta, WHOLE_EVENT, keyless.error)


def _stopped(
    folding: Folding, after: Position, poison: RecordedEvent, failure: Exception, *, events: int
) -> Dealt:
    error, stopped = describe_stop(folding.projection, poison, failure)
    before = Position(max(after, poison.position - 1))
    return Dealt(events, before, caught_up=False, error=error, stopped=stopped)
