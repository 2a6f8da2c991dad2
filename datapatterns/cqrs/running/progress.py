"""What is known about a projection's progress."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class ProjectionProgress:
    """What a runner has done.

    Attributes:
        events: How many events met a handler. Of a `SetProjection`, how many its statements were
            given; of ranges that nobody has counted, how many at most.
        position: How far the read model is now.
        caught_up: Nothing further was final when the last page was read.
    """

    events: int
    position: Position
    caught_up: bool


@dataclass(frozen=True, slots=True)
class SegmentStatus:
    """How one segment of a version stands: the keys that one worker at a time moves on.

    Attributes:
        shard: Which one; it owns the keys whose hash ends so.
        mask: How much of the hash counts; 0 if the version is not split.
        position: How far it is.
        owner: Who has the lease, until ``lease_until``; None if nobody has.
        error: Where it stopped and why: ``error``, ``message``, and if an event is to blame,
            its ``position`` and ``event_type``.
        parked: How many of its events wait for somebody who mends them.
    """

    shard: int
    mask: int
    position: Position
    owner: str | None
    lease_until: datetime | None
    error: Mapping[str, Any] | None
    parked: int


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """How one version of a projection stands.

    Attributes:
        kind: ``table`` or ``redis``.
        status: ``building``, ``ready``, ``live``, ``standby``, ``retired`` or ``failed``.
        mode: ``async``, or ``inline`` if appends move it on.
        position: How far it is, that is the segment that is last; one in Redis as its runner last
            confirmed.
        positions_behind: How much of the log it has not seen, gaps of undone appends included.
        seconds_behind: The age of the oldest event that it has not seen; 0 if there is none.
        segments: Its parts, by shard.
    """

    name: str
    version: int
    kind: str
    status: str
    mode: str
    position: Position
    positions_behind: int
    seconds_behind: float
    segments: tuple[SegmentStatus, ...]

    @property
    def owners(self) -> tuple[str, ...]:
        """Who has leases, each once."""
        owners = (segment.owner for segment in self.segments)
        return tuple(dict.fromkeys(owner for owner in owners if owner is not None))

    @property
    def owner(self) -> str | None:
        """Who has the lease of the segment that is last; None if nobody has."""
        return min(self.segments, key=lambda segment: segment.position).owner

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Where it stopped and why: the error of its first segment that has one."""
        return next((one.error for one in self.segments if one.error is not None), None)

    @property
    def parked(self) -> int:
        """How many of its events wait for somebody who mends them."""
        return sum(segment.parked for segment in self.segments)


def longest_prefix(
    length: int, attempt: Callable[[int], Exception | None]
) -> tuple[int, Exception | None]:
    """Return how many events from the first can be applied, and what the next one raises.

    Whole pages are the rule, so all are tried first; then the number is found by halving, in
    about log2(length) attempts.

    >>> longest_prefix(8, lambda n: None if n < 6 else ValueError(n))
    (5, ValueError(6))
    """
    error = attempt(length)
    if error is None:
        return length, None
    applicable, failing = 0, length
    while failing - applicable > 1:
        middle = (applicable + failing) // 2
        raised = attempt(middle)
        if raised is None:
            applicable = middle
        else:
            failing, error = middle, raised
    return applicable, error
