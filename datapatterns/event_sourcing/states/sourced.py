"""State that stands somewhere in its stream: what aggregates and deciders have in common."""

from abc import abstractmethod
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.content.shapes import field_names, is_frozen
from datapatterns.event_sourcing.events import START, Position, StreamId
from datapatterns.event_sourcing.states.state import UNCHANGING


class Batch(NamedTuple):
    """What a save sends: the events with their ids, and the event that they follow."""

    expected_version: int
    after: Position
    events: list[tuple[UUID, object]]


@dataclass(slots=True)
class History:
    """Where a state stands in its stream.

    Attributes:
        version: Of the state, events that are not saved among them.
        position: Of the last event that was loaded or saved.
        snapshot_version: Of the snapshot that the load began with, or that was last written.
        load_seconds: How long the load took.
        loaded_bytes: The size of the events that the load folded, if the policy asks for it.
        folded: The classes of events since the snapshot that the policy asks for.
        unsaved: Events emitted since the last save, with their ids.
        sent: The batch of the last save, for a retry.
        persons: Whose personal data may be in the state.
        is_folding: An event is being applied, so none can happen.
        is_torn: A handler raised, and may have done half of its work before.
    """

    stream: StreamId
    version: int = 0
    position: Position = START
    snapshot_version: int = 0
    load_seconds: float = 0.0
    loaded_bytes: int = 0
    folded: set[type] = field(default_factory=set)
    unsaved: list[tuple[UUID, object]] = field(default_factory=list)
    sent: Batch | None = None
    persons: set[str] = field(default_factory=set)
    is_folding: bool = False
    is_torn: bool = False

    def refuse_torn(self) -> None:
        """Refuse to store what nobody can know.

        Raises:
            AggregateError: A handler raised.
        """
        if self.is_torn:
            raise AggregateError(
                str(self.stream),
                "was left half changed by a handler that raised; load it again, and decide before"
                " you emit",
            )


class Sourced:
    """State of one stream: `EventStore.load` makes it, `EventStore.save` appends what it emits."""

    _history: History

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._history.stream} at version {self._history.version}>"

    @property
    def stream(self) -> StreamId:
        """The stream that holds its events."""
        return self._history.stream

    @property
    def version(self) -> int:
        """The number of events that made this state, those not yet saved among them."""
        return self._history.version

    @property
    def unsaved(self) -> tuple[object, ...]:
        """The events emitted since the last save, oldest first."""
        return tuple(event for _, event in self._history.unsaved)

    def emit(self, event: object) -> None:
        """Let ``event`` have happened: change the state, and keep it for `EventStore.save`.

        Raises:
            AggregateError: No handler applies it, or one that applies another event emits it.
        """
        history = self._history
        if history.is_folding:
            # It would happen again in every load.
            raise AggregateError(
                str(history.stream),
                f"emits {type(event).__name__} while it applies an event; handlers change the"
                " state only, so emit both where it is decided",
            )
        # The state may go on with a list of the event, and the caller with the event.
        is_shared = is_unchanging(event)
        kept = event if is_shared else deepcopy(event)
        history.is_folding = True
        try:
            self._apply(event if is_shared else deepcopy(event))
        finally:
            history.is_folding = False
        history.unsaved.append((uuid4(), kept))
        history.version += 1

    # Without ABCMeta, which would leave attributes in every class: those of an aggregate are its
    # state. The type checker refuses a class that lacks it all the same.
    @abstractmethod
    def _apply(self, event: object) -> None:
        """Fold ``event`` into the state; each kind of state has its way."""


def is_unchanging(value: object) -> bool:
    """Return whether nothing within ``value`` can be changed, as far as that is plain to see."""
    if isinstance(value, _UNCHANGING):
        return True
    kind = type(value)
    if kind is tuple:
        return all(map(is_unchanging, value))  # type: ignore[call-overload] # a tuple
    names = field_names(kind)
    return bool(names and is_frozen(kind)) and all(
        is_unchanging(getattr(value, name, None)) for name in names
    )


_UNCHANGING: Final = (*UNCHANGING, Enum, UUID, Decimal, date, time, timedelta)
