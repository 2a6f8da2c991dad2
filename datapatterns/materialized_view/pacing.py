"""How long a worker pauses, and for how long it leaves a view alone that fails."""

from typing import Final

PAUSE_SECONDS_MIN: Final = 0.02
PAUSE_SECONDS_MAX: Final = 5.0
"""After so long it looks again whatever it knows: others create, rebase and refresh views, too."""

REST_SECONDS_MIN: Final = 0.25
REST_SECONDS_MAX: Final = 60.0
"""So long a view rests after a failure."""

BUSY_SECONDS: Final = 0.2
"""So long a view is left to whoever is refreshing it."""

SPREAD: Final = 0.1
_FAILURES_COUNTED: Final = 16


def pause_seconds(left: float, draw: float) -> float:
    """Return how long to pause when the next refresh is due in ``left`` seconds.

    Workers that wait for the same view look at different moments, so that mostly one has work.

    >>> pause_seconds(2.0, draw=0.5), pause_seconds(-1.0, draw=0.0), pause_seconds(1e9, draw=0.0)
    (2.1, 0.02, 5.0)

    Args:
        left: In how many seconds something is due; infinity if nothing ever is.
        draw: A number from 0 to 1, drawn at random.
    """
    return min(max(left * (1 + SPREAD * draw), PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX)


def rest_seconds(failures: int, draw: float) -> float:
    """Return how long a view rests after so many failures in a row: twice as long each time.

    Half of it is drawn at random: what has failed together should not come back together.

    >>> [rest_seconds(failures, draw=1.0) for failures in (1, 2, 9, 1_000)]
    [0.25, 0.5, 60.0, 60.0]
    """
    doubled: float = REST_SECONDS_MIN * 2 ** min(failures - 1, _FAILURES_COUNTED)
    return min(doubled, REST_SECONDS_MAX) * (0.5 + draw / 2)


class Rests:
    """What is left alone, until when, and how often in a row it has failed."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def begin(self, name: str, *, now: float, draw: float) -> float:
        """Let it rest after another failure, and return for how long."""
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        seconds = rest_seconds(failures, draw)
        self.leave(name, now + seconds)
        return seconds

    def leave(self, name: str, until: float) -> None:
        """Leave it alone until then, for no fault of its own."""
        self._until[name] = until

    def end(self, name: str) -> None:
        """It works again."""
        self._failures.pop(name, None)
        self._until.pop(name, None)

    def seconds_left(self, name: str, *, now: float) -> float:
        """Return for how long it is still left alone; at most 0 if it is not."""
        return self._until.get(name, now) - now
