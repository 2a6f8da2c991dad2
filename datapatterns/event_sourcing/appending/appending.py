"""Append events to streams, unless another writer got there first."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy import ARRAY, BigInteger, Boolean, Connection, Integer, Text, bindparam, select
from sqlalchemy import column as named
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.types import TypeEngine

from datapatterns.errors import (
    ConditionConflictError,
    EventIdsReusedError,
    IsolationLevelError,
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.event_sourcing.appending.noting import note_append
from datapatterns.event_sourcing.content.encoding import EncodedEvent, refuse_readable
from datapatterns.event_sourcing.events import (
    START,
    VERSION_MAX,
    Appended,
    Expected,
    Position,
    StreamId,
)
from datapatterns.event_sourcing.schema import event_tables

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_EXPECTED: Final = {Expected.ANY: None, Expected.EXISTS: -1}


class StreamBatch(NamedTuple):
    """What is to be appended to one stream.

    Attributes:
        position: That of the event with the expected version, if the caller knows it: then an
            event that has taken its place is a conflict, too.
        keyed: Recognise a repetition although no version is expected.
    """

    stream: StreamId
    encoded: Sequence[EncodedEvent]
    expected_version: int | Expected
    position: Position | None = None
    keyed: bool = False


class Guard(NamedTuple):
    """A condition on tags as the database takes it: JSON, and the mark that it looks behind."""

    condition: str
    after: Position


def append_events(
    conn: Connection, batch: StreamBatch, *, schema: str, guard: Guard | None = None
) -> Appended:
    """Do what `EventStore.append` promises."""
    # By the driver's own statement: Core's execute costs as much again as the round trip.
    call = append_call(batch, schema=schema, guard=guard)
    outcome, version, position = conn.exec_driver_sql(*call).one()
    appended = answered(batch, outcome, version, position)
    note_append(conn, appended.position)
    return appended


def append_call(
    batch: StreamBatch, *, schema: str, guard: Guard | None
) -> tuple[str, dict[str, Any]]:
    """Return the statement, as the driver takes it, and its parameters."""
    parameters = _parameters(batch)
    if parameters["tags"] is None and guard is None and not batch.keyed:
        return _plain_statement(schema), parameters
    parameters["condition"] = guard and guard.condition
    parameters["after"] = guard and guard.after
    return _full_statement(schema), parameters


def append_to_streams(
    conn: Connection, batches: Sequence[StreamBatch], *, schema: str, guard: Guard | None = None
) -> dict[StreamId, Appended]:
    """Do what `EventStore.append_to_streams` promises."""
    # All transactions lock streams in this order, so that no two wait for each other.
    ordered = sorted(batches, key=lambda batch: batch.stream)
    for before, batch in pairwise(ordered):
        if before.stream == batch.stream:
            raise ValueError(f"{batch.stream} comes twice; append all of its events as one batch")
    rows = [_parameters(batch) for batch in ordered]
    parameters: dict[str, Any] = {name: [row[name] for row in rows] for name in _FOR_A_BATCH}
    if guard is not None:
        parameters |= {"condition": guard.condition, "after": guard.after}
    statement = _batch_statement(schema, is_guarded=guard is not None)
    answers = conn.exec_driver_sql(statement, parameters).all()
    # If one is refused, nothing was written, and the last row says why.
    for outcome, version, position, place in answers[-1:]:
        answered(ordered[place - 1], outcome, version, position)
    done = {
        ordered[place - 1].stream: answered(ordered[place - 1], outcome, version, position)
        for outcome, version, position, place in answers
    }
    note_append(conn, max([one.position for one in done.values()], default=START))
    return done


def answered(batch: StreamBatch, outcome: str | bytes, version: int, position: int) -> Appended:
    """Return what an append did.

    Raises:
        ConflictError: Another writer was first.
        ConfigurationError: It was refused.
    """
    if isinstance(outcome, bytes):  # what the driver gives if client_encoding is SQL_ASCII
        outcome = outcome.decode()
    if outcome == "appended":
        return Appended(version, Position(position))
    if outcome == "repeated":
        return Appended(version, Position(position), repeated=True)
    stream = str(batch.stream)
    if outcome == "barred":
        raise ConditionConflictError(stream)
    if outcome == "archived":
        raise StreamArchivedError(stream)
    if outcome == "misused":
        raise EventIdsReusedError(stream)
    if outcome == "isolation":
        raise IsolationLevelError(found="an older snapshot", needed="read committed")
    wanted = batch.expected_version
    raise VersionConflictError(
        stream, expected=wanted.value if isinstance(wanted, Expected) else wanted, found=version
    )


def _parameters(batch: StreamBatch) -> dict[str, Any]:
    stream, encoded, expected_version, position, keyed = batch
    refuse_readable(encoded)
    parameters: dict[str, Any] = {
        "tenant": stream.tenant,
        "category": stream.category,
        "key": stream.key,
        "expected": _expected(expected_version),
        "position": position,
        "codec": encoded[0].codec,
        "keyed": keyed,
        "tags": None,
    }
    if len(encoded) == 1:
        event = encoded[0]
        parameters["types"] = f"{event.name} {event.schema_version}"
        parameters["type_of"] = None
        parameters["event_ids"] = event.event_id.hex
        parameters["data"] = event.data
        parameters["meta"] = event.meta
        if event.tags:
            parameters["tags"] = "\t".join(event.tags)
    else:
        parameters["types"], parameters["type_of"] = _kinds(encoded)
        parameters["event_ids"] = "\n".join([event.event_id.hex for event in encoded])
        # JSON and base64 hold no raw line ends, so lines need no quoting.
        parameters["data"] = "\n".join([event.data for event in encoded])
        parameters["meta"] = _metas(encoded)
        if any(event.tags for event in encoded):
            parameters["tags"] = "\n".join(["\t".join(event.tags) for event in encoded])
    return parameters


def _kinds(encoded: Sequence[EncodedEvent]) -> tuple[str, str | None]:
    numbers: dict[tuple[str, int], str] = {}
    of_each = [
        numbers.setdefault((event.name, event.schema_version), str(len(numbers) + 1))
        for event in encoded
    ]
    lines = "\n".join([f"{name} {version}" for name, version in numbers])
    return lines, None if len(numbers) == 1 else ",".join(of_each)


def _metas(encoded: Sequence[EncodedEvent]) -> str | None:
    first = encoded[0].meta
    if all(event.meta == first for event in encoded):
        return first
    return "\n".join([event.meta or "" for event in encoded])


def _expected(expected_version: int | Expected) -> int | None:
    if isinstance(expected_version, Expected):
        return _EXPECTED[expected_version]
    if not 0 <= expected_version <= VERSION_MAX:
        raise ValueError(
            f"that is no version, it is {'below 0' if expected_version < 0 else 'too large'};"
            " expect what the last event says, 0 for a new stream, ANY or EXISTS"
        )
    return expected_version


_PLAIN: Final[dict[str, TypeEngine[Any]]] = {
    "tenant": Text(),
    "category": Text(),
    "key": Text(),
    "expected": BigInteger(),
    "position": BigInteger(),
    "types": Text(),
    "type_of": Text(),
    "event_ids": Text(),
    "data": Text(),
    "meta": Text(),
    "codec": Integer(),
}
"""What `append_events` takes at least, in its order."""

_FOR_A_BATCH: Final = _PLAIN | {"tags": Text(), "keyed": Boolean()}
_GUARD: Final[dict[str, TypeEngine[Any]]] = {"condition": JSONB(), "after": BigInteger()}
_FOR_ONE: Final = _FOR_A_BATCH | _GUARD
_ANSWER: Final = (
    named("outcome", Text),
    named("stream_version", BigInteger),
    named("last_position", BigInteger),
)


@cache
def _plain_statement(schema: str) -> str:
    return _append_statement(schema, _PLAIN)


@cache
def _full_statement(schema: str) -> str:
    return _append_statement(schema, _FOR_ONE)


def _append_statement(schema: str, taken: Mapping[str, TypeEngine[Any]]) -> str:
    function = event_tables(schema).function(
        "append_events", *(bindparam(name, type_=type_) for name, type_ in taken.items())
    )
    statement = select(*_ANSWER).select_from(function.table_valued(*_ANSWER))
    return str(statement.compile(dialect=_DIALECT))


@cache
def _batch_statement(schema: str, *, is_guarded: bool) -> str:
    answer = (*_ANSWER, named("place", Integer))
    function = event_tables(schema).function(
        "append_to_streams",
        *(bindparam(name, type_=ARRAY(type_)) for name, type_ in _FOR_A_BATCH.items()),
        *(bindparam(name, type_=type_) for name, type_ in _GUARD.items() if is_guarded),
    )
    statement = select(*answer).select_from(function.table_valued(*answer))
    return str(statement.compile(dialect=_DIALECT))


def identified(
    encoded: Sequence[EncodedEvent], event_ids: Sequence[UUID] | None
) -> Sequence[EncodedEvent]:
    """Return the events under these ids, or as they are if None are given.

    Raises:
        ValueError: There are fewer or more ids than events, or one comes twice.
    """
    if event_ids is None:
        return encoded
    if len(event_ids) != len(encoded) or len(set(event_ids)) != len(event_ids):
        raise ValueError(
            f"{len(encoded)} events need as many different ids, not {len(event_ids)}; give one each"
        )
    return [
        replace(event, event_id=event_id)
        for event, event_id in zip(encoded, event_ids, strict=True)
    ]


def refuse_if_archived(conn: Connection, stream: StreamId, *, schema: str) -> None:
    """Refuse to write to a stream that is stopped.

    Raises:
        StreamArchivedError: It is.
    """
    streams = event_tables(schema).streams
    if conn.scalar(select(streams.c.archived_at).filter_by(**asdict(stream))) is not None:
        raise StreamArchivedError(str(stream))
