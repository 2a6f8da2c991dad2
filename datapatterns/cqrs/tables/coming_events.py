"""Events that are about to be appended, as far as they are known."""

from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn

from datapatterns.errors import InlineKeyError
from datapatterns.event_sourcing import Position, RecordedEvent
from datapatterns.event_sourcing.appending.appending import StreamBatch


class ComingEvent(RecordedEvent):
    """An event that has no position, version and time yet."""

    __slots__ = ()

    @property
    def position(self) -> Position:
        """Not known yet."""
        self._refuse("position")

    @property
    def version(self) -> int:
        """Not known yet."""
        self._refuse("version")

    @property
    def recorded_at(self) -> datetime:
        """Not known yet."""
        self._refuse("recorded_at")

    def _refuse(self, attribute: str) -> NoReturn:
        raise InlineKeyError(attribute, event_type=self.event_type)


def coming_events(batches: Sequence[StreamBatch]) -> list[RecordedEvent]:
    """Return the events of ``batches``, which are plain JSON, as a reader of the log sees them."""
    return [
        ComingEvent(
            Position(0),
            batch.stream,
            0,
            event.name,
            event.schema_version,
            event.data.encode(),
            None if event.meta is None else event.meta.encode(),
            event.event_id,
            datetime.min,  # noqa: DTZ901 -- never shown
            event.tags,
        )
        for batch in batches
        for event in batch.encoded
    ]
