"""Events that are about to be appended, as far as they are known."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from datapatterns.errors import InlineKeyError
from datapatterns.event_sourcing import Position, RecordedEvent
from datapatterns.event_sourcing.appending.appending import StreamBatch
from datapatterns.event_sourcing.content.encoding import EncodedEvent


class ComingEvent(RecordedEvent, frozen=True, eq=False, gc=False):
    """An event that has no position, version and time yet."""

    @property  # type: ignore[misc] # in place of the field's
    def position(self) -> Position:
        """Not known yet."""
        self._refuse("position")

    @property  # type: ignore[misc] # in place of the field's
    def version(self) -> int:
        """Not known yet."""
        self._refuse("version")

    @property  # type: ignore[misc] # in place of the field's
    def recorded_at(self) -> datetime:
        """Not known yet."""
        self._refuse("recorded_at")

    def _refuse(self, attribute: str) -> NoReturn:
        raise InlineKeyError(attribute, event_type=self.event_type)


def coming_events(batches: Sequence[StreamBatch]) -> list[RecordedEvent]:
    """Return the events of ``batches``, which are plain JSON, as a reader of the log sees them."""
    return [_coming(batch, event) for batch in batches for event in batch.encoded]


def _coming(batch: StreamBatch, event: EncodedEvent) -> RecordedEvent:
    # As bytes, as they will be read.
    data: Any = event.data.encode()
    metadata: Any = None if event.meta is None else event.meta.encode()
    return ComingEvent(
        Position(0),
        batch.stream,
        0,
        event.name,
        event.schema_version,
        data,
        metadata,
        event.event_id,
        datetime.min,  # noqa: DTZ901 -- never shown
        event.tags,
    )
