"""Let a worker stop cleanly at the first signal, and at once at the second."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ENDED_BY_SIGNAL: Final = 128
"""What shells add to the number of the signal that ended a process."""


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` at the first SIGTERM or SIGINT in the block, which must be in the main thread.

    At a second one the process ends at once: what is not committed is undone by the server, and
    leases are taken over when they lapse.

    Args:
        stop: Must return at once and take no lock, as `Worker.stop` does.

    Raises:
        ValueError: This is not the main thread.
    """
    told = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if told:
            os._exit(_ENDED_BY_SIGNAL + number)
        told = True
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
