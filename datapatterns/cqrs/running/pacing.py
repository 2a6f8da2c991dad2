"""When a segment is looked at again: at once, after a short pause, or after a rest."""

from collections.abc import Hashable
from typing import Final

PAUSE_SECONDS_MIN: Final = 0.002
PAUSE_SECONDS_MAX: Final = 0.25
"""So long a segment may be idle before it is looked at without a reason."""

POLL_SECONDS_MIN: Final = 0.002
POLL_SECONDS_MAX: Final = 0.05
"""So often is looked what others have done, by whoever waits for it."""

REST_SECONDS_MIN: Final = 0.25
REST_SECONDS_MAX: Final = 60.0
"""So long a projection may fail before it is tried again."""

PERSIST_SECONDS: Final = 0.25
"""So often an idle segment writes down that nothing concerned it."""

_FAILURES_COUNTED: Final = 16


def next_pause(pause: float, *, moved: bool) -> float:
    """Return how long to pause after a page: the longer, the longer nothing has come.

    >>> next_pause(0.002, moved=False), next_pause(0.2, moved=False), next_pause(0.2, moved=True)
    (0.004, 0.25, 0.002)
    """
    return PAUSE_SECONDS_MIN if moved else min(2 * pause, PAUSE_SECONDS_MAX)


def rest_seconds(failures: int) -> float:
    """Return how long to rest after so many failures in a row.

    >>> [rest_seconds(failures) for failures in (1, 2, 9, 1_000)]
    [0.25, 0.5, 60.0, 60.0]
    """
    doubled: float = REST_SECONDS_MIN * 2 ** min(failures - 1, _FAILURES_COUNTED)
    return min(doubled, REST_SECONDS_MAX)


class Rests:
    """What has failed, how often in a row, and until when it is left alone."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, int] = {}
        self._until: dict[Hashable, float] = {}

    def begin(self, what: Hashable, *, now: float) -> float:
        """Let it rest after another failure, and return for how long."""
        failures = self._failures[what] = self._failures.get(what, 0) + 1
        seconds = rest_seconds(failures)
        self._until[what] = now + seconds
        return seconds

    def end(self, what: Hashable) -> None:
        """It works again."""
        self._failures.pop(what, None)
        self._until.pop(what, None)

    def resting(self, what: Hashable, *, now: float) -> bool:
        """Return whether it is to be left alone."""
        return now < self._until.get(what, now)

    def failures(self, what: Hashable) -> int:
        """Return how often in a row it has failed."""
        return self._failures.get(what, 0)
