"""What an event of the Python library `eventsourcing` is here: its type, its stream, its data.

That library keeps a row for each event: who (``originator_id``), which of theirs
(``originator_version``), the class (``topic``) and its fields (``state``), by default as JSON in
which values of other types are ``{"_type_": ..., "_data_": ...}``.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, Never
from uuid import UUID, uuid5

from datapatterns.errors import EventDataError, SourceEventError
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.content.payload import encode_mapping
from datapatterns.event_sourcing.events import StreamId, check_event_type

_NAMESPACE: Final = UUID("8f0c0d5e-9d5e-5c8a-9f43-5d0f3c6b7a21")
_WORD_BEGINS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_BOOKKEEPING: Final = ("timestamp", "originator_topic", "class_version")
_TRANSCODED: Final = {"_type_", "_data_"}

Transcoding = Callable[[Any], Any]
"""Takes what a transcoding has written; returns what JSON can hold."""


class SourceEvent(NamedTuple):
    """A row of that library's table of events."""

    originator_id: UUID | str
    originator_version: int
    topic: str | None
    state: bytes | None
    notification_id: int

    def __str__(self) -> str:
        return f"event {self.originator_version} of {self.originator_id} ({self.topic})"


class SourceState(NamedTuple):
    """What the state of a row says.

    Attributes:
        aggregate: The topic of the aggregate's class, if the event tells it.
    """

    data: dict[str, Any]
    recorded_at: datetime
    schema_version: int
    aggregate: str | None


def plain_state(state: bytes) -> bytes:
    """Return the state as it is: neither compressed nor encrypted."""
    return state


class _UnknownTranscodingError(Exception):
    """Says which."""


@dataclass(frozen=True, slots=True)
class EventsourcingMapping:
    """How events of `eventsourcing` become events here; all of it can be left out.

    Without more, the topic ``shop.domain:Dog.TrickAdded`` becomes the type ``dog.trick_added``,
    and the events of a ``Dog`` a stream of the category ``dog``.

    Attributes:
        types: The name of a type by topic; None leaves the events of that topic out.
        categories: The category by the topic of the aggregate, such as ``shop.domain:Dog``.
        tenant: Of all streams.
        change: Is given a topic and the decoded fields; returns the data to store.
        decode_state: Undoes what a cipher and a compressor have done to each state.
        transcodings: For transcodings that the application has registered, by their names.
    """

    types: Mapping[str, str | None] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""
    change: Callable[[str, dict[str, Any]], Mapping[str, Any]] | None = None
    decode_state: Callable[[bytes], bytes] = plain_state
    transcodings: Mapping[str, Transcoding] = field(default_factory=dict)

    def event_type(self, event: SourceEvent) -> str | None:
        """Return the name of the type of ``event``; None if it is left out.

        Raises:
            SourceEventError: Its topic cannot name a type.
        """
        if event.topic is None:
            raise SourceEventError(str(event), "it has no topic")
        if event.topic in self.types:
            return self.types[event.topic]
        name = ".".join(map(_snake_case, _class_path(event.topic)))
        try:
            check_event_type(name, 1)
        except ValueError as error:
            raise SourceEventError(str(event), f"{error}; give types={{topic: name}}") from None
        return name

    def stream(self, event: SourceEvent, aggregate: str | None) -> StreamId:
        """Return the stream of the aggregate whose first event is ``event``.

        Raises:
            SourceEventError: No category can be called like that.
        """
        if aggregate is None:  # not all events that begin a stream tell it
            path = _class_path(event.topic or "")
            aggregate = f"{(event.topic or '').partition(':')[0]}:{'.'.join(path[:-1] or path)}"
        category = self.categories.get(aggregate)
        if category is None:
            category = _snake_case(_class_path(aggregate)[-1])
        try:
            return StreamId(category, str(event.originator_id), self.tenant)
        except ValueError as error:
            advice = f"give categories={{{aggregate!r}: name}}"
            raise SourceEventError(str(event), f"{error}; {advice}") from None

    def state(self, event: SourceEvent) -> SourceState:
        """Return what the state of ``event`` says.

        Raises:
            SourceEventError: It cannot be read.
        """
        try:
            decoded = json.loads(
                self.decode_state(event.state or b""),
                object_hook=self._decoded,
                parse_constant=_refuse,
            )
            at = datetime.fromisoformat(decoded["timestamp"])
            version = int(decoded.get("class_version", 1))
        except _UnknownTranscodingError as error:
            advice = f"give transcodings={{{str(error)!r}: function}}"
            raise SourceEventError(str(event), f"a transcoding is not known; {advice}") from None
        except Exception as error:  # also what a cipher raises, or a transcoding
            reason = f"its state cannot be read ({type(error).__name__}); is it compressed or"
            raise SourceEventError(
                str(event), f"{reason} encrypted? Give decode_state, or transcodings"
            ) from error
        if at.utcoffset() is None:
            raise SourceEventError(
                str(event),
                "its timestamp has no time zone; add it:"
                " transcodings={'datetime_iso': lambda moment: f'{moment}+02:00'}",
            )
        aggregate = decoded.get("originator_topic")
        data = {name: value for name, value in decoded.items() if name not in _BOOKKEEPING}
        return SourceState(data, at, version, aggregate)

    def encoded(self, event: SourceEvent, name: str, state: SourceState) -> EncodedEvent:
        """Return ``event`` as our database takes it; its id is the same each time.

        Raises:
            SourceEventError: Its data cannot be stored.
        """
        data: Mapping[str, Any] = state.data
        if self.change is not None:
            data = self.change(str(event.topic), state.data)
        try:
            check_event_type(name, state.schema_version)
            content = encode_mapping(data, event_type=name)
        except (EventDataError, ValueError) as error:
            raise SourceEventError(str(event), f"{error}; change=function can mend it") from None
        origin = {"topic": event.topic, "notification_id": event.notification_id}
        return EncodedEvent(
            name,
            state.schema_version,
            uuid5(_NAMESPACE, f"{event.originator_id}/{event.originator_version}"),
            content,
            encode_mapping({"eventsourcing": origin}, event_type=name),
        )

    def _decoded(self, found: dict[str, Any]) -> Any:  # noqa: ANN401 -- JSON
        if found.keys() != _TRANSCODED:
            return found
        name, data = found["_type_"], found["_data_"]
        transcoding = self.transcodings.get(name) or _TRANSCODINGS.get(name)
        if transcoding is None:
            raise _UnknownTranscodingError(name)
        return transcoding(data)


# Those that every application of that library has: UUIDs, decimals and times become text.
_TRANSCODINGS: Final[Mapping[str, Transcoding]] = {
    "uuid_hex": lambda data: str(UUID(data)),
    "decimal_str": str,
    "datetime_iso": str,
}


def _class_path(topic: str) -> list[str]:
    """Return the names of a class and those it is in; functions that it is in do not count."""
    return topic.rpartition(":")[2].rpartition("<locals>.")[2].split(".")


def _snake_case(name: str) -> str:
    return _WORD_BEGINS.sub("_", name).lower()


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is no JSON")
