"""How long something takes, often enough to mean something."""

import statistics
import time
from collections.abc import Callable


def median_seconds(action: Callable[[], object], *, times: int = 15) -> float:
    """Return the median of ``times`` runs, after one to warm up."""
    action()
    return statistics.median(seconds(action) for _ in range(times))


def seconds(action: Callable[[], object]) -> float:
    """Return how long one run takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun
