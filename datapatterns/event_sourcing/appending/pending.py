"""What a unit of work has collected and not yet appended, and how savepoints take some back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.appending.appending import StreamBatch
from datapatterns.event_sourcing.appending.batching import APPEND_STREAMS_MAX
from datapatterns.event_sourcing.appending.tag_query import Condition
from datapatterns.event_sourcing.events import Expected, StreamId
from datapatterns.event_sourcing.states.sourced import Sourced


@dataclass(slots=True)
class Saving:
    """An aggregate that is saved at the end.

    Attributes:
        again: Send what the last save sent, if nothing new was emitted.
        version: Of the aggregate when a savepoint was rolled back that it had emitted in.
    """

    sourced: Sourced
    again: bool
    metadata: Mapping[str, Any] | None = None
    spoilt: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a savepoint began."""

    appends: int
    savings: int
    versions: list[int]
    condition: Condition | None = None


NOTHING: Final = Mark(0, 0, [])
"""Where everything began."""


@dataclass(slots=True)
class PendingAppends:
    """Appends and aggregates in the order in which they came."""

    appends: list[StreamBatch] = field(default_factory=list)
    savings: list[Saving] = field(default_factory=list)
    merged: dict[StreamId, StreamBatch] = field(default_factory=dict)
    """One append for each stream."""
    condition: Condition | None = None
    """On all of them."""

    def __bool__(self) -> bool:
        return bool(self.appends or self.savings)

    def clear(self) -> None:
        """Forget everything."""
        self.appends.clear()
        self.savings.clear()
        self.merged.clear()
        self.condition = None

    def require(self, condition: Condition) -> None:
        """Append nothing if an event matches ``condition``.

        Raises:
            ValueError: There is another one.
        """
        if self.condition not in (None, condition):
            raise ValueError(
                "a unit takes one condition; read all that it decides from by one query, such as"
                " Tagged(...) | Tagged(...)"
            )
        self.condition = condition

    def add(self, batch: StreamBatch) -> None:
        """Take an append.

        Raises:
            ValueError: It does not follow what is collected for its stream.
        """
        if self.saving_of(batch.stream) is not None:
            raise ValueError(f"{batch.stream} is saved as an aggregate in this unit; let it emit")
        self._check_count()
        before = self.merged.get(batch.stream)
        self.merged[batch.stream] = batch if before is None else _following(before, batch)
        self.appends.append(batch)

    def save(self, saving: Saving) -> None:
        """Take an aggregate, which may go on emitting.

        Raises:
            ValueError: Its stream is appended to otherwise, or by another object.
        """
        stream = saving.sourced.stream
        if stream in self.merged:
            raise ValueError(f"{stream} is appended to without its aggregate in this unit")
        known = self.saving_of(stream)
        if known is None:
            self._check_count()
            self.savings.append(saving)
        elif known.sourced is not saving.sourced:
            raise ValueError(f"{stream} is in this unit as another object; use unit.load twice")
        else:
            known.again = known.again or saving.again
            known.metadata = saving.metadata or known.metadata

    def saving_of(self, stream: StreamId) -> Saving | None:
        """Return what is known of the aggregate of ``stream``."""
        return next((s for s in self.savings if s.sourced.stream == stream), None)

    def mark(self) -> Mark:
        """Remember how much there is."""
        versions = [saving.sourced.version for saving in self.savings]
        return Mark(len(self.appends), len(self.savings), versions, self.condition)

    def back_to(self, mark: Mark) -> None:
        """Drop what came since; of what was there before, know who has emitted since."""
        if len(self.appends) > mark.appends:
            kept = self.appends[: mark.appends]
            self.appends.clear()
            self.merged.clear()
            for batch in kept:
                self.add(batch)
        self.condition = mark.condition
        del self.savings[mark.savings :]
        for saving, version in zip(self.savings, mark.versions, strict=True):
            saving.spoilt = saving.spoilt or saving.sourced.version != version

    def check_unspoilt(self) -> None:
        """Refuse aggregates whose state holds what a savepoint has taken back.

        Raises:
            AggregateError: There is one.
        """
        for saving in self.savings:
            if saving.spoilt:
                raise AggregateError(
                    repr(saving.sourced),
                    "has emitted events in a savepoint that was rolled back; roll back, load it"
                    " again and decide again",
                )

    def _check_count(self) -> None:
        if len(self.merged) + len(self.savings) >= APPEND_STREAMS_MAX:
            raise ValueError(f"more than {APPEND_STREAMS_MAX} streams are too many for one unit")


def _following(before: StreamBatch, batch: StreamBatch) -> StreamBatch:
    expected, wanted = before.expected_version, batch.expected_version
    if before.keyed or batch.keyed:
        raise ValueError(
            f"{batch.stream} is appended to twice in this unit, with event ids; give all events"
            " and their ids at once"
        )
    if not isinstance(wanted, Expected) and (
        isinstance(expected, Expected) or wanted != expected + len(before.encoded)
    ):
        raise ValueError(
            f"version {wanted} of {batch.stream} was expected, and this unit appends"
            f" {len(before.encoded)} events to it before; expect what the stream will have then"
        )
    return before._replace(encoded=[*before.encoded, *batch.encoded])
