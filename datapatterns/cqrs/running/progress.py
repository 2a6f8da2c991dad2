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
        events: How many events met a handler.
        position: How far the read model is now.
        caught_up: Nothing further was final when the last page was read.
    """

    events: int
    position: Position
    caught_up: bool


@dataclass(frozen=True, slots=True)
class ProjectionStatus:
    """How one version of a projection stands.

    Attributes:
        status: ``building``, ``live``, ``standby``, ``retired`` or ``failed``.
        position: How far it is; one in Redis as its runner last confirmed.
        positions_behind: How much of the log it has not seen, gaps of undone appends included.
        seconds_behind: The age of the oldest event that it has not seen; 0 if there is none.
        owner: Who has the lease, until ``lease_until``; None if nobody has.
        error: Where it stopped and why: ``position``, ``event_type``, ``error``, ``message``.
    """

    name: str
    version: int
    kind: str
    status: str
    position: Position
    positions_behind: int
    seconds_behind: float
    owner: str | None
    lease_until: datetime | None
    error: Mapping[str, Any] | None


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
