"""Visitors and a writer go on while Redis is killed and comes back."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from threading import Event, Lock
from time import perf_counter

from datapatterns.cache_aside import Cache, CacheStats
from datapatterns_grocer.screen import milliseconds
from datapatterns_grocer.stage import Stage

VISITORS = 4
VISITS_IN_PEACE = 2_000
VISITS_WITHOUT = 600
HITS_AFTER = 1_500
WRITES = 5
_LOOK_SECONDS = 0.005


@dataclass(slots=True)
class Visitors:
    """Threads that visit pages all the time.

    Attributes:
        visit: Shows the page of a product; returns None if there is none.
        products: What is visited, the more popular the earlier in the list.
    """

    visit: Callable[[int], object]
    products: Sequence[int]
    _stop: Event = field(default_factory=Event)
    _lock: Lock = field(default_factory=Lock)
    _visits: int = 0
    _slowest: float = 0.0
    _under_way: list[Future[None]] = field(default_factory=list)

    @contextmanager
    def strolling(self) -> Iterator[None]:
        """Let them visit until the end of the block, which fails if one of them did."""
        with ThreadPoolExecutor(VISITORS) as pool:
            self._under_way = [pool.submit(self._stroll, n) for n in range(VISITORS)]
            try:
                yield
            finally:
                self._stop.set()
            for visitor in self._under_way:
                visitor.result()

    def wait_until(self, condition: Callable[[int], bool]) -> tuple[int, float]:
        """Wait until so many visits are enough; return how many they were, and the slowest."""
        with self._lock:
            before, self._slowest = self._visits, 0.0
        while not condition(self._visits - before):
            self._stop.wait(_LOOK_SECONDS)
            for visitor in self._under_way:
                if visitor.done():
                    visitor.result()  # it has failed
        with self._lock:
            return self._visits - before, self._slowest

    def _stroll(self, seed: int) -> None:
        random = Random(seed)  # noqa: S311 -- a story
        weights = [1 / rank for rank in range(1, len(self.products) + 1)]
        while not self._stop.is_set():
            for product_id in random.choices(self.products, weights, k=50):
                began = perf_counter()
                assert self.visit(product_id) is not None
                took = perf_counter() - began
                with self._lock:
                    self._visits += 1
                    self._slowest = max(self._slowest, took)


def take_redis_away(
    stage: Stage,
    cache: Cache,
    visit: Callable[[int], object],
    products: Sequence[int],
    write: Callable[[int], object],
) -> None:
    """Kill Redis under load, start it again, and show what visitors and writers have noticed.

    Args:
        stage: The servers.
        cache: What the pages are kept in.
        visit: Shows a page.
        products: Whose pages there are, the most popular first.
        write: Changes something on a page, in a transaction of its own.
    """
    server = stage.redis_server
    if server is None:
        stage.screen.say("Redis is yours, so it is not killed here; with its own, the demo does")
        return
    visitors = Visitors(visit, products)
    rows: list[list[object]] = []

    def phase(title: str, enough: Callable[[int], bool]) -> CacheStats:
        before = cache.stats()
        for product_id in products[:WRITES]:
            write(product_id)
        visits, slowest = visitors.wait_until(enough)
        after = cache.stats()
        rows.append(_row(title, visits, slowest, before, after))
        return after

    with visitors.strolling():
        phase("there", lambda visits: visits >= VISITS_IN_PEACE)
        server.kill()
        away = phase("killed", lambda visits: visits >= VISITS_WITHOUT)
        began = perf_counter()
        server.start()
        visitors.wait_until(lambda _: cache.stats().hits > away.hits)
        seconds = perf_counter() - began
        back = cache.stats().hits
        phase("back", lambda _: cache.stats().hits - back >= HITS_AFTER)
    titles = ["Redis is", "visits", "hit ratio", "loads", "slowest", "writes", "untold"]
    stage.screen.table(titles, rows)
    stage.screen.say(
        "nobody got an error; what Redis was not told of while it was away, it was told before its"
        f" first hit, {seconds:.1f} s after its start"
    )


def _row(
    title: str, visits: int, slowest: float, before: CacheStats, after: CacheStats
) -> list[object]:
    hits, loads = after.hits - before.hits, after.loads - before.loads
    joined = after.joined - before.joined
    served = hits + joined
    ratio = served / (served + loads) if served + loads else 0.0
    undelivered = after.undelivered - before.undelivered
    return [title, visits, f"{ratio:.1%}", loads, milliseconds(slowest), WRITES, undelivered]
