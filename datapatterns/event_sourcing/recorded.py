"""An event as it was read: cheap to make, decoded where somebody looks.

Readers pass most events by with a look at a few attributes. So what is slow to make (objects of
JSON, a UUID, a datetime) stays as the server sent it until it is asked for, and is kept then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from datapatterns.event_sourcing.content.payload import decode_stored

if TYPE_CHECKING:  # there, this module's values are at hand, too
    from datapatterns.event_sourcing.events import Position, StreamId

_BEGINNING: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""From where PostgreSQL counts microseconds."""


class RecordedEvent(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Something that happened; its attributes cannot be set.

    A struct that the garbage collector passes by, as it is made a million times: pages of objects
    that it tracks would have it go through the whole heap again and again.

    Attributes:
        position: Its place among all events; positions rise but have gaps.
        stream: The stream that it belongs to.
        version: Its place in its stream, from 1 without gaps.
        event_type: The name of what happened.
        schema_version: Which shape ``data`` has.
        data: As stored, in the shape of ``schema_version``; `EventStore.decode` makes it typed.
        metadata: Who, why, in answer to what.
        event_id: What makes a retry of its append recognisable.
        recorded_at: When its append was executed, or what its import said; in UTC if it was read
            from the store.
        tags: What it is about.

    Raises:
        EventShapeError: By ``data`` and ``metadata``: Python cannot read them; this library has
            not written them.
    """

    # Whoever reads the log gives the last ones but the tags as the server sends them, as bytes.
    position: Position
    stream: StreamId
    version: int
    event_type: str
    schema_version: int
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] | None
    event_id: UUID
    recorded_at: datetime
    tags: tuple[str, ...] = ()
    _decoded: Mapping[str, Any] | None = None

    __match_args__ = (
        "position",
        "stream",
        "version",
        "event_type",
        "schema_version",
        "data",
        "metadata",
        "event_id",
        "recorded_at",
        "tags",
    )

    @property
    def stored(self) -> bytes | None:
        """Its data as the JSON that was stored; None if it was not read from a store."""
        data: Any = _GIVEN_DATA(self)
        return data if data.__class__ is bytes else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordedEvent):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash((self.position, self.stream, self.version))

    def __repr__(self) -> str:
        parts = zip(self.__match_args__, self._parts(), strict=True)
        return f"RecordedEvent({', '.join(f'{name}={part!r}' for name, part in parts)})"

    def _parts(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)


def _decode(recorded: RecordedEvent, stored: bytes) -> Any:  # noqa: ANN401 -- JSON
    return decode_stored(
        stored, event_type=recorded.event_type, schema_version=recorded.schema_version
    )


def _data(recorded: RecordedEvent) -> Mapping[str, Any]:
    data: Any = _GIVEN_DATA(recorded)
    if data.__class__ is not bytes:
        return data  # type: ignore[no-any-return] # checked when it was appended
    decoded: Any = _DECODED(recorded)
    if decoded is None:
        decoded = _decode(recorded, data)
        _KEEP_DECODED(recorded, decoded)
    return decoded  # type: ignore[no-any-return] # checked when it was appended


def _made_of_bytes(name: str, make: Callable[[RecordedEvent, bytes], object]) -> None:
    given = getattr(RecordedEvent, name)
    get, keep = given.__get__, given.__set__

    def made(recorded: RecordedEvent) -> object:
        value = get(recorded)
        if value.__class__ is bytes:
            value = make(recorded, value)
            keep(recorded, value)
        return value

    setattr(RecordedEvent, name, property(made))


# Behind the constructor, which takes them by their names and at the speed of C, these become
# properties: what is slow to make is made where somebody looks, and kept.
_GIVEN_DATA: Final[Callable[[RecordedEvent], object]] = RecordedEvent.__dict__["data"].__get__
_DECODED: Final[Callable[[RecordedEvent], object]] = RecordedEvent.__dict__["_decoded"].__get__
_KEEP_DECODED: Final = RecordedEvent.__dict__["_decoded"].__set__
RecordedEvent.data = property(_data)  # type: ignore[assignment] # see above
_made_of_bytes("metadata", _decode)
_made_of_bytes("event_id", lambda _, sent: UUID(bytes=sent))
_made_of_bytes(
    "recorded_at",
    lambda _, sent: _BEGINNING + timedelta(microseconds=int.from_bytes(sent, signed=True)),
)


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some events of all streams, in the order that never changes.

    Attributes:
        events: In rising position.
        checkpoint: Where to go on; beyond the last event if those that follow do not match.
        mark: Up to where the log was final. Until the checkpoint has reached it, further pages can
            be read ``up_to`` it, without asking anew.
    """

    events: list[RecordedEvent]
    checkpoint: Position
    mark: Position

    @property
    def caught_up(self) -> bool:
        """Whether nothing further was final."""
        return self.checkpoint >= self.mark


class TypedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as an object of its class, and where it stands.

    A struct that the garbage collector passes by, as it is made a million times: a dataclass costs
    more than decoding the event.

    Attributes:
        position: Its place among all events.
        stream: The stream that it belongs to.
        version: Its place in its stream.
        event: The object. What upcasters make several events of comes several times.
    """

    position: Position
    stream: StreamId
    version: int
    event: Any


@dataclass(frozen=True, slots=True)
class TypedPage:
    """Like `LogPage`, of typed events."""

    events: list[TypedEvent]
    checkpoint: Position
    mark: Position

    @property
    def caught_up(self) -> bool:
        """Whether nothing further was final."""
        return self.checkpoint >= self.mark
