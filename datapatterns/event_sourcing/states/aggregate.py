"""Aggregates: state that is folded from the events of one stream, and decides about new ones."""

from copy import deepcopy
from inspect import get_annotations
from types import FunctionType
from typing import ClassVar, Final

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing.events import StreamId
from datapatterns.event_sourcing.states.handling import Handling
from datapatterns.event_sourcing.states.policy import SnapshotPolicy
from datapatterns.event_sourcing.states.sourced import History, Sourced
from datapatterns.event_sourcing.states.state import UNCHANGING, state_defaults


class Aggregate(Sourced, metaclass=Handling):
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

    def __init__(self, key: str, *, tenant: str = "") -> None:
        self._history = History(stream_of(type(self), key, tenant))
        for name, default in self._changing:
            setattr(self, name, deepcopy(default))

    def _apply(self, event: object) -> None:
        handler = self._handlers.get(type(event))
        if handler is None:
            name = type(event).__name__
            raise AggregateError(
                type(self).__name__,
                f"has no handler for {name}; add @applies def _(self, e: {name}), empty if the"
                " event changes nothing",
            )
        try:
            handler(self, event)
        except BaseException:
            self._history.is_torn = True
            raise


_TAKEN: Final = frozenset(
    {"category", "snapshot_policy", "snapshot_version", "stream", "unsaved", "version"}
)


def stream_of(aggregate: type[Aggregate], key: str, tenant: str = "") -> StreamId:
    """Return the stream of the aggregate with that key.

    Raises:
        AggregateError: The class has no category.
        ValueError: The key or the tenant cannot be stored.
    """
    if aggregate.category is None:
        raise AggregateError(aggregate.__name__, 'has no category; add category="..." to its class')
    return StreamId(aggregate.category, key, tenant)
