"""200 callers ask for one cold key at once whose loader takes 50 ms; how long does each wait?"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from threading import Barrier

from dogpile.cache import make_region
from sqlalchemy import Connection, text

from benchmarks.delays import DelayClaim, Traveller
from benchmarks.pages import TTL_SECONDS, Page, decode, encode, page_of
from datapatterns import DataLayer
from datapatterns.cache_aside import CachePolicy

CALLERS = 200
LOAD_SECONDS = 0.05

Ask = Callable[[int], object]
"""Reads the page of that number."""


class Loader:
    """Counts its calls, each of which keeps the database busy for 50 ms."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, conn: Connection) -> Page:
        self.loads += 1
        conn.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": LOAD_SECONDS})
        return page_of(200)


@contextmanager
def claim() -> Iterator[DelayClaim]:
    """The first caller's load, waited for by 199 others; threads of one process."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        loaders = {name: Loader() for name in ("ours", "dogpile")}
        near, rival = _ours(stack, layer, loaders["ours"]), _rival(layer, loaders["dogpile"])
        yield DelayClaim(
            f"{CALLERS} callers of one cold key, loaded in {LOAD_SECONDS * 1000:.0f} ms",
            [
                Traveller("cached function", "ours", _run(pool, near)),
                Traveller("one caller alone", "limit", _alone(layer)),
                Traveller("dogpile.cache, distributed lock", "rival", _run(pool, rival)),
            ],
        )
        for name, loader in loaders.items():
            print(f"{name}: {loader.loads} loads")  # noqa: T201


def _run(pool: ThreadPoolExecutor, ask: Ask) -> Callable[[], list[float]]:
    numbers, barrier = count(), Barrier(CALLERS)

    def call(number: int) -> float:
        barrier.wait()
        begun = time.perf_counter()
        ask(number)
        return time.perf_counter() - begun

    def run() -> list[float]:
        number = next(numbers)
        return list(pool.map(call, [number] * CALLERS))

    return run


def _ours(stack: ExitStack, layer: DataLayer, load: Loader) -> Ask:
    cache = stack.enter_context(
        closing(layer.cache("page", policy=CachePolicy(ttl_seconds=TTL_SECONDS)))
    )
    cache.relay()
    return lambda number: cache.get_or_load(number, load, value_type=Page)


def _alone(layer: DataLayer) -> Callable[[], list[float]]:
    load = Loader()

    def run() -> list[float]:
        begun = time.perf_counter()
        with layer.engine.connect() as conn:
            load(conn)
        return [time.perf_counter() - begun]

    return run


def _rival(layer: DataLayer, load: Loader) -> Ask:
    region = make_region(serializer=encode, deserializer=decode).configure(
        "dogpile.cache.redis",
        expiration_time=TTL_SECONDS,
        arguments={
            "url": layer.settings.redis_url,
            "redis_expiration_time": 2 * TTL_SECONDS,
            "distributed_lock": True,
            "lock_timeout": 3,
            "thread_local_lock": False,
            "connection_kwargs": {"max_connections": 2 * CALLERS},
        },
    )

    def create() -> Page:
        with layer.engine.connect() as conn:
            return load(conn)

    return lambda number: region.get_or_create(f"page:{number}", create)
