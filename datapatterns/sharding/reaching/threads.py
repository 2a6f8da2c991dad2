"""Threads of which no shard can take those of another."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from datapatterns.sharding.fan_out import InThreads

THREADS_MAX: Final = 32
"""So many statements of one process are under way on one shard, beside those of callers' own.

Each has a connection of the shard's pool, which is the smaller number unless it was raised.
"""


class InThreadsOfShards(InThreads):
    """Asks each shard in threads of its own.

    With common threads a shard that does not answer would take them all, one statement after the
    other, and with them the other shards.

    Args:
        shards: Their names.
    """

    def __init__(self, shards: Iterable[str]) -> None:
        self._executors = {
            shard: ThreadPoolExecutor(THREADS_MAX, thread_name_prefix=f"datapatterns-{shard}")
            for shard in shards
        }

    def shutdown(self) -> None:
        """Wait until all that was asked has been answered, and end the threads."""
        for executor in self._executors.values():
            executor.shutdown()

    def _submit(self, shard: str, ask: Callable[[], None]) -> None:
        self._executors[shard].submit(ask)
