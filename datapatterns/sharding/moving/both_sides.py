"""Two servers work at the same time, each on a connection of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def on_both(one: Callable[[], T], other: Callable[[], T]) -> tuple[T, T]:
    """Return what both return, when both have ended.

    Raises:
        Exception: What the first raised, else what the other raised.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="datapatterns-move") as pool:
        found = pool.submit(other)
        return one(), found.result()
