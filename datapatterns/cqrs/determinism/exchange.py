"""What another process is asked, and what it answers: data alone."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from datapatterns.cqrs.definition import AnyProjection, Projection
from datapatterns.cqrs.determinism.carrying import (
    UncarriedError,
    carry,
    decoder,
    given_back,
    object_as_json,
)
from datapatterns.cqrs.determinism.in_memory import Decoded, State
from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_keys import Place, Structure
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.event_sourcing.events import Position, StreamId
from datapatterns.event_sourcing.evolution.event_types import EventTypes
from datapatterns.event_sourcing.recorded import RecordedEvent

_Row: TypeAlias = tuple[str, Any, Any]
"""The name of a table, and as `carry` makes them a key and values; None for no row."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `RecordedEvent`; what has a type of its own is as `carry` makes it."""

    position: int
    stream: tuple[str, str, str]
    version: int
    event_type: str
    schema_version: int
    data: Any
    metadata: Any
    event_id: Any
    recorded_at: Any
    tags: tuple[str, ...]


class Events(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Decoded events that meet handlers.

    Attributes:
        records: Each once; upcasters may make several events of one.
        events: Which of the handled classes it is of, which record it has, and its JSON.
    """

    records: list[Record]
    events: list[tuple[int, int, bytes]]


class Question(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What comes of ``events``?

    Attributes:
        events: In the order of the log.
        rows: What there is before.
        left_out: Positions, and digests of rows that do not get what happened there.
        places: What they hold before, in Redis.
    """

    events: Events
    rows: list[_Row] = []
    left_out: list[tuple[int, bytes]] = []
    places: list[tuple[Place, str]] = []


class Answer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What came of it.

    Attributes:
        failure: Why nothing did; None if something did.
        rows: What they hold afterwards.
        places: What they hold afterwards, or None for nothing.
        dropped: Which structures are emptied before.
    """

    failure: str | None = None
    rows: list[_Row] = []
    places: list[tuple[Place, str | None]] = []
    dropped: list[Structure] = []


questions: Final = msgspec.msgpack.Decoder(Question)
answers: Final = msgspec.msgpack.Decoder(Answer)


def carry_events(projection: type[AnyProjection], types: EventTypes, decoded: Decoded) -> Events:
    """Return those of ``decoded``, which ``types`` have read, that meet a handler.

    Raises:
        EventShapeError: Python cannot read the metadata of one.
        UncarriedError: An upcaster has made what JSON would change.
    """
    numbers = {cls: number for number, cls in enumerate(_handled(projection))}
    carried, last = Events([], []), None
    for event, meta in decoded:
        number = numbers.get(type(event))
        if number is None:
            continue
        if meta is not last:
            carried.records.append(_carry_record(meta))
            last = meta
        encoded = _json_read(types, meta) or object_as_json(event)
        carried.events.append((number, len(carried.records) - 1, encoded))
    return carried


def _handled(projection: type[AnyProjection]) -> list[type]:
    """Return the classes of events that meet a handler, each once, as they were declared."""
    return list(dict.fromkeys(handler.event_class for handler in projection.handlers))


def events_given_back(projection: type[AnyProjection], carried: Events) -> Decoded:
    """Return the events of which `carry_events` has made this."""
    decode = [decoder(cls).decode for cls in _handled(projection)]
    records = [_record_given_back(one) for one in carried.records]
    return [(decode[number](encoded), records[at]) for number, at, encoded in carried.events]


def _json_read(types: EventTypes, meta: RecordedEvent) -> bytes | None:
    """Return the JSON of which an event was made, if no upcaster has seen it."""
    is_direct = types.reader(meta.event_type, meta.schema_version).decoder is not None
    return meta.stored if is_direct else None


def _carry_record(meta: RecordedEvent) -> Record:
    stream = meta.stream
    return Record(
        meta.position,
        (stream.category, stream.key, stream.tenant),
        meta.version,
        meta.event_type,
        meta.schema_version,
        carry(meta.data if meta.stored is None else meta.stored),
        carry(meta.metadata),
        carry(meta.event_id),
        carry(meta.recorded_at),
        meta.tags,
    )


def _record_given_back(record: Record) -> RecordedEvent:
    return RecordedEvent(
        Position(record.position),
        StreamId(*record.stream),
        record.version,
        record.event_type,
        record.schema_version,
        given_back(record.data),
        given_back(record.metadata),
        given_back(record.event_id),
        given_back(record.recorded_at),
        record.tags,
    )


def carry_rows(state: State) -> list[_Row]:
    """Return what rows hold.

    Raises:
        UncarriedError: One holds what would come back as something else.
    """
    return [(str(table), carry(key), carry(values)) for (table, key), values in state.items()]


def rows_given_back(projection: type[Projection], carried: Iterable[_Row]) -> State:
    """Return the rows of which `carry_rows` has made this.

    Raises:
        UncarriedError: They are not of the tables as they are declared here.
    """
    models = read_models_of(projection).values()
    widths = {model.table.name: len(model.fields) for model in models}
    state: State = {}
    for table, key, told in carried:
        values = given_back(told)
        if table not in widths or not (values is None or len(values) == widths[table]):
            raise UncarriedError(f"rows of {table} are not what is declared here")
        state[table, given_back(key)] = values
    return state


def left_out_of(projection: type[Projection], carried: Sequence[tuple[int, bytes]]) -> LeftOut:
    """Return the parts that a fold is to leave out."""
    parts = frozenset((Position(position), digest) for position, digest in carried)
    return LeftOut(projection, parts=parts)


def answer_of(outcome: Outcome) -> Answer:
    """Return the answer that tells ``outcome``."""
    return Answer(places=list(outcome.places.items()), dropped=list(outcome.dropped))


def outcome_of(answer: Answer) -> Outcome:
    """Return the outcome of which `answer_of` has made this."""
    return Outcome(dict(answer.places), answer.dropped)


def reason_of(error: Exception) -> str:
    """Return why there is no answer, as text that can be sent."""
    told = str(error) if isinstance(error, UncarriedError) else f"{type(error).__name__}: {error}"
    return told.encode(errors="backslashreplace").decode()
