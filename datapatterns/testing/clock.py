"""A clock that stands still until it is told."""

import threading
from datetime import UTC, datetime, timedelta

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
"""What a manual clock shows unless it is told otherwise."""


class ManualClock:
    """A ``datapatterns.clock.Clock`` for tests; nobody ever waits for it.

    >>> clock = ManualClock()
    >>> clock.advance(90)
    >>> clock.now() - BEGINNING
    datetime.timedelta(seconds=90)
    """

    def __init__(self, now: datetime = BEGINNING) -> None:
        if now.tzinfo is None:
            raise ValueError("the time needs a time zone")
        self._beginning = now
        self._passed_seconds = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the time it shows."""
        return self._beginning + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Return the seconds that were let pass so far."""
        with self._lock:
            return self._passed_seconds

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass.

        Raises:
            ValueError: They are negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back ({seconds} s)")
        with self._lock:
            self._passed_seconds += seconds
