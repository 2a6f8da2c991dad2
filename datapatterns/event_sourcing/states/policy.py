"""When is it worth writing a snapshot?"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Due as soon as one of its limits is reached; ``|`` joins two policies.

    Attributes:
        events: How many events lie beyond the latest snapshot; None for no limit.
        seconds: How long a load took; None for no limit.
        size_bytes: How many bytes of events a load had to fold; None for no limit.
        types: Classes of events, one of which suffices.
    """

    events: int | None = None
    seconds: float | None = None
    size_bytes: int | None = None
    types: frozenset[type] = frozenset()

    def __or__(self, other: "SnapshotPolicy") -> "SnapshotPolicy":
        return SnapshotPolicy(
            _lower(self.events, other.events),
            _lower(self.seconds, other.seconds),
            _lower(self.size_bytes, other.size_bytes),
            self.types | other.types,
        )

    def is_due(
        self,
        *,
        events: int,
        load_seconds: float = 0.0,
        loaded_bytes: int = 0,
        folded: Collection[type] = (),
    ) -> bool:
        """Tell whether a snapshot would save enough.

        >>> (every(100) | slower_than(0.05)).is_due(events=20, load_seconds=0.06)
        True

        Args:
            events: How many lie beyond the latest snapshot.
            load_seconds: How long the load took.
            loaded_bytes: How much of them the load had to read.
            folded: Their classes.
        """
        if events == 0:
            return False
        folded_many = self.events is not None and events >= self.events
        loaded_slowly = self.seconds is not None and load_seconds > self.seconds
        loaded_much = self.size_bytes is not None and loaded_bytes > self.size_bytes
        return folded_many or loaded_slowly or loaded_much or not self.types.isdisjoint(folded)


def every(events: int) -> SnapshotPolicy:
    """Ask for a snapshot once ``events`` events lie beyond the latest one.

    Raises:
        ValueError: ``events`` is not positive.
    """
    if events < 1:
        raise ValueError(f"a snapshot every {events} events is not possible; use 1 or more")
    return SnapshotPolicy(events=events)


def slower_than(seconds: float) -> SnapshotPolicy:
    """Ask for a snapshot once a load took more than ``seconds``.

    Raises:
        ValueError: ``seconds`` is negative.
    """
    if seconds < 0:
        raise ValueError(f"nothing takes less than {seconds} seconds; use 0 or more")
    return SnapshotPolicy(seconds=seconds)


def larger_than(size_bytes: int) -> SnapshotPolicy:
    """Ask for a snapshot once a load had to read more than ``size_bytes`` of events.

    Raises:
        ValueError: ``size_bytes`` is negative.
    """
    if size_bytes < 0:
        raise ValueError(f"nothing is smaller than {size_bytes} bytes; use 0 or more")
    return SnapshotPolicy(size_bytes=size_bytes)


def on(*events: type) -> SnapshotPolicy:
    """Ask for a snapshot once an event of one of these classes happened, such as a closing.

    Raises:
        ValueError: There are none.
    """
    if not events:
        raise ValueError("name the classes of events that ask for a snapshot")
    return SnapshotPolicy(types=frozenset(events))


def _lower(one: N | None, other: N | None) -> N | None:
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits, default=None)
