"""Given these events, then the read model holds that: whatever the pages and however often."""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, overload
from uuid import UUID

from sqlalchemy import Connection

from datapatterns.cqrs import Projection, RedisProjection, SetProjection, TableProjection
from datapatterns.cqrs.in_redis.json_text import json_text
from datapatterns.event_sourcing import EventStore, EventTypes, Position, RecordedEvent, StreamId
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES
from datapatterns.testing.clock import BEGINNING
from datapatterns.testing.models.projected import (
    ApplyPage,
    ByFunction,
    Contents,
    InRedis,
    InSql,
    InTable,
    Pages,
    Projected,
    table_of,
)
from datapatterns.testing.models.stored_form import stored_form
from datapatterns.testing.models.story import SpecError, told

_STREAM: Final = StreamId("spec", "1")


@dataclass(frozen=True, slots=True)
class _Given:
    recorded: RecordedEvent
    event: object


class ProjectionSpec:
    """Says what a projection makes of events.

    Each ``then`` also checks what a runner relies on: pages of one event each, a restart between
    any two events, and a rebuild give the same read model, and no handler looks at the clock or
    draws chance. Whatever breaks one of these holds state outside of its rows, or depends on
    more than its row and its event.

    Nothing is changed by a chain, so a part of it can be kept and gone on from several times.
    In the database nothing is left: all happens behind a savepoint, with the read model emptied
    first. In Redis nothing happens at all.
    """

    @overload
    def __init__(
        self, subject: type[RedisProjection], /, *, types: EventTypes = EVENT_TYPES
    ) -> None: ...
    @overload
    def __init__(
        self,
        subject: type[TableProjection],
        /,
        conn: Connection,
        *,
        types: EventTypes = EVENT_TYPES,
    ) -> None: ...
    @overload
    def __init__(
        self,
        subject: ApplyPage,
        /,
        conn: Connection,
        *,
        into: Sequence[Any],
        types: EventTypes = EVENT_TYPES,
    ) -> None: ...
    def __init__(
        self,
        subject: Any,
        /,
        conn: Connection | None = None,
        *,
        into: Sequence[Any] = (),
        types: EventTypes = EVENT_TYPES,
    ) -> None:
        """Say what projects.

        Args:
            subject: A `RedisProjection`, `Projection` or `SetProjection`; or a function of your
                own, called as ``function(conn, events)`` for each page. It must bear to be given
                a page twice.
            conn: Where the tables are. What it has written is seen and kept.
            into: The mapped classes or tables that a function of your own writes.
            types: Where the classes of the events are declared.

        Raises:
            TypeError: It is none of these, or ``conn`` or ``into`` is missing.
        """
        self._subject = _projected(subject, conn, into, EventStore(types=types))
        self._types = types
        self._given: tuple[_Given, ...] = ()
        self._found: Contents | None = None

    def given(
        self,
        *events: object,
        stream: StreamId = _STREAM,
        metadata: Mapping[str, Any] | None = None,
    ) -> "ProjectionSpec":
        """Return the spec with ``events`` behind those that it has.

        Positions count from 1 and versions within ``stream``; an event is recorded a second
        after the one before.

        Raises:
            EventDataError: One cannot be stored.
            EventTypeError: Its class is not declared.
        """
        spec: ProjectionSpec = copy(self)
        spec._found = None
        for event in events:
            recorded = _recorded(spec._given, event, self._types, stream=stream, metadata=metadata)
            spec._given = (*spec._given, _Given(recorded, event))
        return spec

    def then_rows(self, *rows: Mapping[str, Any], into: Any = None) -> "ProjectionSpec":  # noqa: ANN401
        """Expect exactly these rows, in any order, by column name; other columns do not count.

        Args:
            rows: All of them should name the same columns.
            into: Which table, if a function of your own writes several.

        Raises:
            SpecError: There are others, or they depend on more than the events.
            ValueError: It does not write ``into``.
        """
        table = None if into is None else self._written(into)
        contents = self._checked()
        columns = {name for row in rows for name in row}
        got = [
            {name: value for name, value in row.items() if name in columns} if columns else row
            for place, row in contents.items()
            if table is None or place[0] == table
        ]
        missing, surplus = _without(rows, got), _without(got, rows)
        if missing or surplus:
            self._fail(
                "the rows are others",
                *told("expected", [dict(row) for row in rows]),
                *told("got", got),
            )
        return self

    def _written(self, into: Any) -> str:  # noqa: ANN401 -- a mapped class or a table
        written = [table.fullname for table in self._subject.tables]
        name = table_of(into).fullname
        if name not in written:
            # It would have no rows, whatever is written.
            raise ValueError(f"it does not write {name}, but {', '.join(written) or 'no table'}")
        return name

    def then_hash(self, name: str, fields: Mapping[Any, str | int]) -> "ProjectionSpec":
        """Expect exactly these fields in a hash of Redis; values and fields may be integers.

        Raises:
            SpecError: It holds others, or they depend on more than the events.
        """
        return self._then_places("hash", name, fields)

    def then_scores(self, name: str, members: Mapping[Any, int]) -> "ProjectionSpec":
        """Expect exactly these members in a sorted set of Redis.

        Raises:
            SpecError: It holds others, or they depend on more than the events.
        """
        return self._then_places("zset", name, members)

    def then_documents(self, name: str, documents: Mapping[Any, object]) -> "ProjectionSpec":
        """Expect exactly these JSON documents in Redis; keys may be integers.

        Raises:
            SpecError: It holds others, or they depend on more than the events.
        """
        texts = {key: json_text(document) for key, document in documents.items()}
        return self._then_places("json", name, texts)

    def _then_places(self, kind: str, name: str, wanted: Mapping[Any, Any]) -> "ProjectionSpec":
        got = {
            place[2]: value for place, value in self._checked().items() if place[:2] == (kind, name)
        }
        expected = {str(field): str(value) for field, value in wanted.items()}
        if got != expected:
            self._fail(f"{name} is another", f"expected  {expected}", f"got       {got}")
        return self

    def _checked(self) -> Contents:
        if self._found is None:
            self._found = self._check()
        return self._found

    def _check(self) -> Contents:
        events = [given.recorded for given in self._given]
        whole = self._run([events])
        for pages, what in _repeats(events, redelivered=self._subject.survives_redelivery):
            again = self._run(pages)
            if again != whole:
                self._fail(
                    f"{what} gives another read model",
                    f"pages     {[len(page) for page in pages]}",
                    *_parted(whole, again),
                )
        return whole

    def _run(self, pages: Pages) -> Contents:
        calls: list[str] = []
        try:
            contents = self._subject.contents(pages, calls.append)
        except Exception as error:
            raise SpecError(
                f"an event cannot be applied: {type(error).__name__}: {error}", *self._story()
            ) from error
        if calls:
            self._fail(
                "a handler depends on more than its row and its event", f"it calls  {calls[0]}"
            )
        return contents

    def _story(self) -> list[str]:
        return told("given", [given.event for given in self._given])

    def _fail(self, claim: str, *lines: str) -> None:
        raise SpecError(claim, *self._story(), *lines)


def _projected(
    subject: Any,  # noqa: ANN401 -- a projection or a function
    conn: Connection | None,
    into: Sequence[Any],
    store: EventStore,
) -> Projected:
    if isinstance(subject, type) and issubclass(subject, RedisProjection):
        return InRedis(subject, store)
    if conn is None:
        raise TypeError("give the connection on which the tables are")
    if isinstance(subject, type) and issubclass(subject, Projection):
        return InTable(subject, store, conn)
    if isinstance(subject, type) and issubclass(subject, SetProjection):
        return InSql(subject, store, conn)
    if not callable(subject) or not into:
        raise TypeError("give a projection, or a function and the tables that it writes: into=[..]")
    return ByFunction(subject, [table_of(model) for model in into], conn)


def _recorded(
    before: Sequence[_Given],
    event: object,
    types: EventTypes,
    *,
    stream: StreamId,
    metadata: Mapping[str, Any] | None,
) -> RecordedEvent:
    stored = stored_form(event, types)
    position = len(before) + 1
    return RecordedEvent(
        position=Position(position),
        stream=stream,
        version=1 + sum(given.recorded.stream == stream for given in before),
        event_type=stored.event_type,
        schema_version=stored.schema_version,
        data=json.loads(stored.data),
        metadata=metadata,
        event_id=UUID(int=position),
        recorded_at=BEGINNING + timedelta(seconds=position),
    )


def _repeats(events: list[RecordedEvent], *, redelivered: bool) -> list[tuple[Pages, str]]:
    repeats: list[tuple[Pages, str]] = [([events], "a rebuild")]
    if redelivered:
        repeats.append(([events, events], "a page that comes twice"))
        each_twice = [[event] for event in events for _ in range(2)]
        repeats.append((each_twice, "an event that comes twice"))
    if len(events) > 1:
        repeats.append(([[event] for event in events], "a page for each event"))
        cuts = range(1, len(events))
        repeats += [([events[:at], events[at:]], "a restart between two events") for at in cuts]
    return repeats


def _parted(whole: Contents, again: Contents) -> list[str]:
    nothing = "nothing"
    return [
        f"differs   {place}: {whole.get(place, nothing)} first, {again.get(place, nothing)} then"
        for place in whole.keys() | again.keys()
        if whole.get(place) != again.get(place)
    ]


def _without(rows: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    left = list(rows)
    for other in others:
        if other in left:
            left.remove(other)
    return left
