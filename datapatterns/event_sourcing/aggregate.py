"""Aggregates: state that is folded from the events of one stream, and decides about new ones."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import get_annotations
from types import FunctionType
from typing import ClassVar, Final, NamedTuple
from uuid import UUID, uuid4

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.events import START, Position, StreamId
from datapatterns.event_sourcing.handling import Handling
from datapatterns.event_sourcing.policy import SnapshotPolicy
from datapatterns.event_sourcing.state import UNCHANGING, state_defaults


class Batch(NamedTuple):
    """What a save sends: the events with their ids, and the event that they follow."""

    expected_version: int
    after: Position
    events: list[tuple[UUID, object]]


@dataclass(slots=True)
class History:
    """Where an aggregate stands in its stream.

    Attributes:
        version: Of the state, events that are not saved among them.
        position: Of the last event that was loaded or saved.
        snapshot_version: Of the snapshot that the load began with, or that was last written.
        load_seconds: How long the load took.
        unsaved: Events emitted since the last save, with their ids.
        sent: The batch of the last save, for a retry.
    """

    stream: StreamId
    version: int = 0
    position: Position = START
    snapshot_version: int = 0
    load_seconds: float = 0.0
    unsaved: list[tuple[UUID, object]] = field(default_factory=list)
    sent: Batch | None = None


class Aggregate(metaclass=Handling):
    """State of one stream. Subclass it, give the state as class attributes, mark the handlers.

    Class arguments:
        category: The first part of the names of its streams.
        snapshot: When to write snapshots; without a policy there are none.
        snapshot_version: Raise it when a change matters that the code's fingerprint cannot see.

    Methods that decide check the state and call `emit`; methods under `applies` change the state.
    `EventStore.load` makes objects; ``Basket("7")`` is the basket before its first event.
    """

    category: ClassVar[str | None] = None
    snapshot_policy: ClassVar[SnapshotPolicy | None] = None
    snapshot_version: ClassVar[int] = 0
    _handlers: ClassVar[dict[type, FunctionType]]
    _changing: ClassVar[tuple[tuple[str, object], ...]] = ()
    _history: History

    def __init_subclass__(
        cls,
        *,
        category: str | None = None,
        snapshot: SnapshotPolicy | None = None,
        snapshot_version: int | None = None,
    ) -> None:
        super().__init_subclass__()
        for name in sorted(_TAKEN & (vars(cls).keys() | get_annotations(cls).keys())):
            raise AggregateError(
                cls.__name__,
                f"declares {name}, which means something in every aggregate; call it otherwise,"
                ' or give it as class argument: class Basket(Aggregate, category="basket")',
            )
        if category is not None:
            StreamId(category, "any")  # refuses what cannot name a category
            cls.category = category
        if snapshot is not None:
            cls.snapshot_policy = snapshot
        if snapshot_version is not None:
            cls.snapshot_version = snapshot_version
        # A list as class attribute would be shared by all objects: each gets a copy of its own.
        cls._changing = tuple(
            (name, default)
            for name, default in state_defaults(cls, above=Aggregate).items()
            if not isinstance(default, UNCHANGING)
        )

    def __init__(self, key: str) -> None:
        self._history = History(stream_of(type(self), key))
        for name, default in self._changing:
            setattr(self, name, deepcopy(default))

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
            AggregateError: No handler applies it.
        """
        # The state may go on with a list of the event, and change it before it is saved.
        kept = event if _is_unchanging(event) else deepcopy(event)
        self._apply(event)
        self._history.unsaved.append((uuid4(), kept))
        self._history.version += 1

    def _apply(self, event: object) -> None:
        handler = self._handlers.get(type(event))
        if handler is None:
            name = type(event).__name__
            raise AggregateError(
                type(self).__name__,
                f"has no handler for {name}; add @applies def _(self, e: {name}), empty if the"
                " event changes nothing",
            )
        handler(self, event)


_TAKEN: Final = frozenset(
    {"category", "snapshot_policy", "snapshot_version", "stream", "unsaved", "version"}
)


def _is_unchanging(event: object) -> bool:
    fields: Iterable[str] = getattr(event, "__struct_fields__", ())
    names = (*fields, *getattr(event, "__dataclass_fields__", ()))
    return bool(names) and all(isinstance(getattr(event, n, None), UNCHANGING) for n in names)


def stream_of(aggregate: type[Aggregate], key: str) -> StreamId:
    """Return the stream of the aggregate with that key.

    Raises:
        AggregateError: The class has no category.
        ValueError: The key cannot be stored.
    """
    if aggregate.category is None:
        raise AggregateError(aggregate.__name__, 'has no category; add category="..." to its class')
    return StreamId(aggregate.category, key)
