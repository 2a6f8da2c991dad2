"""How often a command is tried again, and when."""

from dataclasses import dataclass
from random import SystemRandom
from typing import Final

from datapatterns.clock import Clock

_random: Final = SystemRandom()


@dataclass(frozen=True, slots=True)
class Retry:
    """Bounds for attempts at one command.

    Attributes:
        attempts: How many there are at most, the first among them.
        timeout_seconds: No attempt begins after this much.
        delay_seconds: The longest wait before the second attempt. It doubles each time, and a
            random part of it is waited, so that rivals do not meet again.
        delay_seconds_max: The longest wait there is.
    """

    attempts: int = 10
    timeout_seconds: float = 10.0
    delay_seconds: float = 0.005
    delay_seconds_max: float = 0.25

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"{self.attempts} attempts do nothing; allow at least 1")
        for name in ("timeout_seconds", "delay_seconds", "delay_seconds_max"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative")


DEFAULT_RETRY: Final = Retry()
"""Ten attempts within ten seconds."""


class Attempts:
    """Counts the attempts at one command."""

    def __init__(self, retry: Retry, clock: Clock) -> None:
        self._retry = retry
        self._clock = clock
        self._deadline = clock.monotonic() + retry.timeout_seconds
        self.made = 0

    def begin(self) -> None:
        """Count one more."""
        self.made += 1

    def delay(self) -> float | None:
        """Return how long to wait before the next attempt; None if there is none."""
        retry = self._retry
        # From the exponent of a large number of attempts nothing is left but the maximum.
        longest = min(retry.delay_seconds_max, retry.delay_seconds * 2.0 ** min(self.made - 1, 60))
        seconds = _random.uniform(0, longest)
        is_over = self.made >= retry.attempts or self._clock.monotonic() + seconds > self._deadline
        return None if is_over else seconds
