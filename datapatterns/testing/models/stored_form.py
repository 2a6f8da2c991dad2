"""What becomes of events and states when they are stored, without a server."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from datapatterns.event_sourcing import Aggregate, Decider, EventTypes
from datapatterns.event_sourcing.content.payload import encode_event
from datapatterns.event_sourcing.states.state import (
    AttributeShape,
    ValueShape,
    state_shape,
    value_shape,
)
from datapatterns.testing.models.story import SpecError, told


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the store keeps it."""

    event_type: str
    schema_version: int
    data: str

    def read(self, types: EventTypes) -> list[object]:
        """Return what it says today, as new objects."""
        return types.decode_json(self.event_type, self.schema_version, self.data)


def stored_form(event: object, types: EventTypes) -> StoredEvent:
    """Return ``event`` as it would be stored, once it is sure that it comes back the same.

    Raises:
        EventDataError: It cannot be stored.
        EventTypeError: Its class is not declared.
        SpecError: It comes back as something else.
    """
    declared = types.of(type(event))
    data = encode_event(event, event_type=declared.name)
    stored = StoredEvent(declared.name, declared.schema_version, data)
    got = stored.read(types)
    if got != [event]:
        raise SpecError(
            "an event is read back as something else",
            *told("stored", [event]),
            f"as        {data}",
            *told("got", got),
            "annotate its fields more precisely",
        )
    return stored


class SnapshotForm(Protocol):
    """How a state is stored in a snapshot."""

    def again(self, state: Any) -> Any:  # noqa: ANN401 -- whatever the state is
        """Return what a load makes of a snapshot of ``state``."""
        ...


def snapshot_form(subject: object, snapshot_as: object | None) -> SnapshotForm | None:
    """Return how states of ``subject`` are stored; None if they are not.

    Raises:
        AggregateError: Its state cannot be stored.
    """
    if isinstance(subject, type) and issubclass(subject, Aggregate):
        if subject.snapshot_policy is None:
            return None
        return _AggregateSnapshots(subject, state_shape(subject, above=Aggregate))
    if snapshot_as is None and isinstance(subject, Decider) and subject.snapshot_policy is not None:
        snapshot_as = subject.state
    if snapshot_as is None:
        return None
    return _DeciderSnapshots(value_shape(type(subject).__name__, snapshot_as))


@dataclass(frozen=True, slots=True)
class _AggregateSnapshots:
    """As `EventStore.save_snapshot` writes them."""

    cls: type[Aggregate]
    shape: AttributeShape

    def again(self, state: Aggregate) -> Aggregate:
        restored = self.cls("spec")
        try:
            # Unchecked: what comes back is compared by the machine, which can show both.
            self.shape.restore(restored, self.shape.write(state))
        except msgspec.ValidationError:
            self.shape.encode(state)  # says what is wrong
            raise
        return restored


@dataclass(frozen=True, slots=True)
class _DeciderSnapshots:
    """As `EventStore.save_snapshot` writes them."""

    shape: ValueShape

    def again(self, state: object) -> Any:  # noqa: ANN401 -- whatever the state is
        try:
            return self.shape.decode_value(self.shape.write_value(state))  # unchecked, as above
        except msgspec.ValidationError:
            self.shape.encode_value(state)  # says what is wrong
            raise
