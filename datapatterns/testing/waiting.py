"""Wait for something to be so, instead of sleeping and hoping."""

from collections.abc import Callable
from typing import TypeVar

from datapatterns.clock import SYSTEM_CLOCK, Clock

T = TypeVar("T")

_POLL_SECONDS = 0.01


def wait_until(
    condition: Callable[[], T | None],
    *,
    deadline_seconds: float = 10.0,
    clock: Clock = SYSTEM_CLOCK,
) -> T:
    """Return the first true value of ``condition``, asked again and again.

    Raises:
        TimeoutError: None came within ``deadline_seconds``.
    """
    deadline = clock.monotonic() + deadline_seconds
    while not (value := condition()):
        if clock.monotonic() >= deadline:
            raise TimeoutError(f"{condition!r} stayed {value!r} for {deadline_seconds:g} s")
        clock.sleep(_POLL_SECONDS)
    return value
