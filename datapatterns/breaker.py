"""Stop asking a server that does not answer, and try again now and then."""

from collections.abc import Callable
from threading import Lock

FAILURES_MAX = 5
RETRY_SECONDS = 1.0


class Breaker:
    """Opens after five failures in a row; then lets one trial through each second.

    Args:
        monotonic: Seconds that never go back.
        on_change: Called with True when it opens, and with False when it closes again.
    """

    def __init__(
        self,
        monotonic: Callable[[], float],
        on_change: Callable[[bool], object] = lambda _: None,
    ) -> None:
        self._monotonic = monotonic
        self._on_change = on_change
        self._lock = Lock()
        self._failures = 0
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the server is being left alone."""
        return self._failures >= FAILURES_MAX

    def allows(self) -> bool:
        """Return whether to ask the server; while open, True is a trial and one a second."""
        if self._failures < FAILURES_MAX:
            return True
        with self._lock:
            now = self._monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + RETRY_SECONDS
            return True

    def succeeded(self) -> None:
        """Take note of an answer."""
        if self._failures:
            with self._lock:
                was_open, self._failures = self.is_open, 0
            if was_open:
                self._on_change(False)

    def failed(self) -> None:
        """Take note of silence."""
        with self._lock:
            self._failures += 1
            has_opened = self._failures == FAILURES_MAX
            if self._failures >= FAILURES_MAX:
                self._retry_at = self._monotonic() + RETRY_SECONDS
        if has_opened:
            self._on_change(True)
