"""When is it worth writing a snapshot?"""

from dataclasses import dataclass
from typing import TypeVar

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """Due as soon as one of its limits is reached; ``|`` joins two policies.

    Attributes:
        events: How many events a load had to fold beyond the latest snapshot; None for no limit.
        seconds: How long a load took; None for no limit.
    """

    events: int | None = None
    seconds: float | None = None

    def __or__(self, other: "SnapshotPolicy") -> "SnapshotPolicy":
        return SnapshotPolicy(
            _lower(self.events, other.events), _lower(self.seconds, other.seconds)
        )

    def is_due(self, *, events: int, load_seconds: float) -> bool:
        """Tell whether a snapshot would save enough.

        >>> (every(100) | slower_than(0.05)).is_due(events=20, load_seconds=0.06)
        True
        """
        if events == 0:
            return False
        folded_many = self.events is not None and events >= self.events
        loaded_slowly = self.seconds is not None and load_seconds > self.seconds
        return folded_many or loaded_slowly


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


def _lower(one: N | None, other: N | None) -> N | None:
    limits = [limit for limit in (one, other) if limit is not None]
    return min(limits, default=None)
