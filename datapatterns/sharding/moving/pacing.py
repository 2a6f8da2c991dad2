"""How fast a move may go, and how long it waits for others."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from datapatterns.clock import Clock


@dataclass(slots=True)
class Pace:
    """Keeps a move from taking all of a server, and a worker's lease from running out.

    Attributes:
        clock: What time it is, and how to wait.
        bytes_per_second: How much to copy at most; None for as fast as it goes.
        beat: Called now and then by whoever works for long.
        bytes: How much has been copied.
    """

    clock: Clock
    bytes_per_second: float | None
    beat: Callable[[], None]
    bytes: int = 0
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock.monotonic()

    def back_off(self, attempt: int) -> None:
        """Wait before trying to lock something again; others wait for other times."""
        self.beat()
        seconds = min(0.5, 0.01 * 2 ** min(attempt, 10))
        self.clock.sleep(seconds * (0.5 + random.random()))  # noqa: S311 -- no secret

    def sent(self, more: int) -> None:
        """Count what was copied, and wait if that was more than allowed."""
        self.bytes += more
        self.beat()
        if self.bytes_per_second is None:
            return
        ahead = self.bytes / self.bytes_per_second - (self.clock.monotonic() - self._since)
        if ahead > 0:
            self.clock.sleep(ahead)
