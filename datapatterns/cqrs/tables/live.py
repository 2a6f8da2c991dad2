"""A read model of a few events, folded when somebody asks, and stored nowhere."""

from abc import ABC
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar

from sqlalchemy import Connection

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.running.paging import stored_types
from datapatterns.cqrs.running.progress import longest_prefix
from datapatterns.cqrs.tables.folding import RowsByTable, fold_steps, plan_steps
from datapatterns.cqrs.tables.projecting import describe_stop
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.errors import LiveFoldLimitError, ProjectionDefinitionError
from datapatterns.event_sourcing.appending.tag_query import Tagged, TagQuery
from datapatterns.event_sourcing.events import START, StreamId
from datapatterns.event_sourcing.log.decoding import decode_each
from datapatterns.event_sourcing.log.filtering import LogFilter
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore

T = TypeVar("T")

Source: TypeAlias = StreamId | Tagged | TagQuery | LogFilter
"""Of which events."""

LIVE_EVENTS_MAX: Final = 10_000
"""How many events are folded at read, unless somebody asks for more."""

_PAGE_EVENTS: Final = 1_000
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class LiveRows:
    """Rows as events made them, in no table.

    Attributes:
        events: How many events were read for it.
        tables: The rows by mapped class and by key.
    """

    events: int
    tables: Mapping[type, Mapping[Hashable, Any]] = field(repr=False)

    @property
    def rows(self) -> Mapping[Hashable, Any]:
        """The rows by key, of a projection into one table.

        Raises:
            ValueError: There are several; `of` gives those of one.
        """
        if len(self.tables) != 1:
            names = ", ".join(table.__name__ for table in self.tables)
            raise ValueError(f"say of which table: of() one of {names}")
        return next(iter(self.tables.values()))

    def of(self, table: type[T]) -> Mapping[Hashable, T]:
        """Return the rows of one table by key; they have the attributes of its mapped class.

        Raises:
            ValueError: It is none of the projection's.
        """
        if table not in self.tables:
            names = ", ".join(known.__name__ for known in self.tables)
            raise ValueError(f"{table.__name__} is none of its tables, which are {names}")
        return self.tables[table]


class LiveFolds(ABC):
    """The part of `Projections` that folds at read."""

    __slots__ = ()

    store: EventStore

    def live(
        self,
        conn: Connection,
        projection: type[Projection],
        *,
        of: Source,
        at: int | datetime | None = None,
        tenant: str = "",
        limit: int = LIVE_EVENTS_MAX,
    ) -> LiveRows:
        """Fold what a stream, a tag query or a filter of the log gives, and store nothing.

        Nobody has to run the projection, and nothing can be behind; each call reads the events
        anew. What the caller's own transaction has appended to a stream is among them. Tags and
        filters show what is final, so a transaction that has appended does not see its own. What
        handlers emit is dropped.

        Args:
            conn: A connection in a transaction.
            projection: Its methods; whatever its tables hold does not matter.
            of: Whose events.
            at: As it was then: a time, a version of the stream, or a position of the log.
            tenant: Whose events, if ``of`` is about tags.
            limit: How many events to read at most.

        Raises:
            IsolationLevelError: Tags and filters need READ COMMITTED.
            LiveFoldLimitError: There are more events.
            ProjectionDefinitionError: It is no `Projection`, or its tables cannot be folded into.
            ProjectionStoppedError: An event cannot be applied.
            ValueError: ``limit`` is not positive, or ``at`` has no time zone.
        """
        if limit < 1:
            raise ValueError(f"{limit} events cannot be folded; ask for at least 1")
        if isinstance(at, datetime) and at.utcoffset() is None:
            raise ValueError(f"{at} has no time zone; give one")
        if not issubclass(projection, Projection):
            raise ProjectionDefinitionError(
                projection.name, "only a Projection, which folds in Python, can be folded at read"
            )
        names = frozenset(stored_types(self.store, projection))
        read, wanted = 0, list[RecordedEvent]()
        for event in _events(conn, self.store, _narrowed(of, at, names), at, tenant):
            read += 1
            if read > limit:
                raise LiveFoldLimitError(projection.name, limit=limit)
            if event.event_type in names:
                wanted.append(event)
        return LiveRows(read, _folded(self.store, projection, wanted))


def _narrowed(of: Source, at: int | datetime | None, names: frozenset[str]) -> Source:
    """Return a filter that leaves out what the projection has no use for."""
    if not isinstance(of, LogFilter):
        return of
    types = names if of.event_types is None else names.intersection(of.event_types)
    narrowed = replace(of, event_types=sorted(types))
    if not isinstance(at, datetime):
        return narrowed
    try:
        until = at + _MICROSECOND
    except OverflowError:  # the last moment of all
        return narrowed
    return replace(narrowed, until=until if of.until is None else min(of.until, until))


def _events(
    conn: Connection, store: EventStore, of: Source, at: int | datetime | None, tenant: str
) -> Iterator[RecordedEvent]:
    match of:
        case StreamId():
            found = _of_stream(conn, store, of, at)
        case Tagged() | TagQuery():
            found = _of_tags(conn, store, of, tenant)
        case _:
            found = _of_log(conn, store, of)
    match at:
        case datetime():
            # Within an append all events have one time; across streams, times do not rise.
            return (event for event in found if event.recorded_at <= at)
        case int() if not isinstance(of, StreamId):
            return _up_to(found, at)
        case _:
            return found


def _up_to(found: Iterator[RecordedEvent], position: int) -> Iterator[RecordedEvent]:
    for event in found:
        if event.position > position:
            return
        yield event


def _of_stream(
    conn: Connection, store: EventStore, stream: StreamId, at: int | datetime | None
) -> Iterator[RecordedEvent]:
    version, last = 0, None if isinstance(at, datetime) else at
    while True:
        page = store.read_stream(
            conn, stream, after_version=version, to_version=last, limit=_PAGE_EVENTS
        )
        yield from page
        if len(page) < _PAGE_EVENTS:
            return
        version = page[-1].version


def _of_tags(
    conn: Connection, store: EventStore, query: Tagged | TagQuery, tenant: str
) -> Iterator[RecordedEvent]:
    after = START
    while True:
        page = store.read_tagged(conn, query, tenant=tenant, after=after, limit=_PAGE_EVENTS)
        yield from page.events
        if page.caught_up:
            return
        after = page.checkpoint


def _of_log(conn: Connection, store: EventStore, matching: LogFilter) -> Iterator[RecordedEvent]:
    page = store.read_log(conn, START, limit=_PAGE_EVENTS, matching=matching)
    yield from page.events
    # Given the page before, a reader goes on to the mark of the first, and not behind busy writers.
    while not page.caught_up:
        page = store.read_log(conn, page, limit=_PAGE_EVENTS, matching=matching)
        yield from page.events


def _folded(
    store: EventStore, projection: type[Projection], events: list[RecordedEvent]
) -> Mapping[type, Mapping[Hashable, Any]]:
    fold = _fold_of(store, projection)
    try:
        found = fold(events)
    except Exception:  # the application's code may raise anything
        length, error = longest_prefix(len(events), lambda n: _error_of(fold, events[:n]))
        if error is None:
            raise  # only once: it depends on more than the events
        stopped = describe_stop(projection, events[length], error)[1]
        raise stopped from error
    return {
        table: {key: row for key, row in rows.items() if row is not None}
        for table, rows in found.items()
    }


def _fold_of(
    store: EventStore, projection: type[Projection]
) -> Callable[[list[RecordedEvent]], RowsByTable]:
    models = read_models_of(projection)
    new_row = {table: model.new_row for table, model in models.items()}

    def fold(events: list[RecordedEvent]) -> RowsByTable:
        rows: RowsByTable = {table: {} for table in models}
        instance = projection()
        steps = plan_steps(instance, decode_each(store.types, events))
        fold_steps(instance, steps, rows, new_row=new_row)
        return rows

    return fold


def _error_of(
    fold: Callable[[list[RecordedEvent]], RowsByTable], events: list[RecordedEvent]
) -> Exception | None:
    try:
        fold(events)
    except Exception as error:  # noqa: BLE001 -- it is looked for
        return error
    return None
