"""An event as it was read: cheap to make, decoded where somebody looks.

Readers pass most events by with a look at a few attributes. So what is slow to make (objects of
JSON, a UUID, a datetime) stays as the server sent it until it is asked for, and is kept then.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class RecordedEvent:
    """Something that happened; its attributes cannot be set.

    Attributes:
        position: Its place among all events; positions rise but have gaps.
        version: Its place in its stream, from 1 without gaps.
        data: As stored, in the shape of ``schema_version``; `EventStore.decode` makes it typed.
        recorded_at: In UTC if it was read from the store.

    Raises:
        EventShapeError: By ``data`` and ``metadata``: Python cannot read them; this library has
            not written them.
    """

    __slots__ = (
        "_data",
        "_event_id",
        "_event_type",
        "_json",
        "_metadata",
        "_position",
        "_recorded_at",
        "_schema_version",
        "_stream",
        "_tags",
        "_version",
    )
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

    def __init__(  # noqa: PLR0913, PLR0917 -- a value with so many fields, as its dataclass would have
        self,
        position: Position,
        stream: StreamId,
        version: int,
        event_type: str,
        schema_version: int,
        data: Mapping[str, Any] | bytes,
        metadata: Mapping[str, Any] | bytes | None,
        event_id: UUID | bytes,
        recorded_at: datetime | bytes,
        tags: tuple[str, ...] = (),
    ) -> None:
        """Take each part as it is, or as bytes as the server sends it."""
        # Plain attributes behind properties: a frozen dataclass takes five times as long.
        self._position = position
        self._stream = stream
        self._version = version
        self._event_type = event_type
        self._schema_version = schema_version
        self._json = data if data.__class__ is bytes else None
        self._data = data
        self._metadata = metadata
        self._event_id = event_id
        self._recorded_at = recorded_at
        self._tags = tags

    @property
    def position(self) -> Position:
        """Its place among all events; positions rise but have gaps."""
        return self._position

    @property
    def stream(self) -> StreamId:
        """The stream that it belongs to."""
        return self._stream

    @property
    def version(self) -> int:
        """Its place in its stream, from 1 without gaps."""
        return self._version

    @property
    def event_type(self) -> str:
        """The name of what happened."""
        return self._event_type

    @property
    def schema_version(self) -> int:
        """Which shape ``data`` has."""
        return self._schema_version

    @property
    def data(self) -> Mapping[str, Any]:
        """What it says, as stored."""
        data: Any = self._data
        if data.__class__ is bytes:
            data = self._data = self._decoded(data)
        return data  # type: ignore[no-any-return] # checked when it was appended

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """Who, why, in answer to what."""
        metadata: Any = self._metadata
        if metadata.__class__ is bytes:
            metadata = self._metadata = self._decoded(metadata)
        return metadata  # type: ignore[no-any-return] # checked when it was appended

    @property
    def event_id(self) -> UUID:
        """What makes a retry of its append recognisable."""
        event_id = self._event_id
        if not isinstance(event_id, UUID):
            event_id = self._event_id = UUID(bytes=event_id)
        return event_id

    @property
    def recorded_at(self) -> datetime:
        """When its append was executed, or what its import said."""
        recorded_at = self._recorded_at
        if not isinstance(recorded_at, datetime):
            microseconds = int.from_bytes(recorded_at, signed=True)
            recorded_at = _BEGINNING + timedelta(microseconds=microseconds)
            self._recorded_at = recorded_at
        return recorded_at

    @property
    def tags(self) -> tuple[str, ...]:
        """What it is about."""
        return self._tags

    @property
    def stored(self) -> bytes | None:
        """Its data as the JSON that was stored; None if it was not read from a store."""
        return self._json

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordedEvent):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash((self._position, self._stream, self._version))

    def __repr__(self) -> str:
        parts = zip(self.__match_args__, self._parts(), strict=True)
        return f"RecordedEvent({', '.join(f'{name}={part!r}' for name, part in parts)})"

    def _parts(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def _decoded(self, stored: bytes) -> Any:  # noqa: ANN401 -- JSON
        return decode_stored(
            stored, event_type=self._event_type, schema_version=self._schema_version
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
