"""A hit in the process's own memory, beside one in Redis, and beside bare dictionaries."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from dogpile.cache import make_region
from sqlalchemy import Connection

from benchmarks.interleaving import Claim, Contestant
from benchmarks.pages import NUMBER, SIZES, TTL_SECONDS, Page, page_of
from datapatterns import DataLayer
from datapatterns.cache_aside import CachePolicy

CASES = SIZES
# Each second a hit pays for a look at the gate; as in life, many share that.
OPERATIONS, OPERATIONS_IN_REDIS = 100_000, 3_000


@contextmanager
def claim(size: int) -> Iterator[Claim]:
    """One thread reads one key that is there."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        page = page_of(size)
        yield Claim(
            f"local cache hit, {size} bytes",
            "hits",
            [
                Contestant("local tier, a frozen page", "ours", _ours(stack, layer, page, Page)),
                Contestant(
                    "local tier, plain data", "limit", _ours(stack, layer, _plain(page), dict)
                ),
                Contestant("the same function, Redis", "limit", _redis(stack, layer, page)),
                Contestant("a dict with an expiry", "limit", _dictionary(page)),
                Contestant("dogpile.cache.memory", "rival", _rival(page)),
            ],
        )


def _plain(page: Page) -> dict[str, object]:
    return {name: getattr(page, name) for name in Page.__slots__}


def _ours(stack: ExitStack, layer: DataLayer, page: object, page_type: type) -> Callable[[], int]:
    policy = CachePolicy(ttl_seconds=TTL_SECONDS, local_bytes=2**20)
    return _cached(stack, layer, page, page_type, policy)


def _redis(stack: ExitStack, layer: DataLayer, page: Page) -> Callable[[], int]:
    return _cached(stack, layer, page, Page, CachePolicy(ttl_seconds=TTL_SECONDS))


def _cached(
    stack: ExitStack, layer: DataLayer, page: object, page_type: type, policy: CachePolicy
) -> Callable[[], int]:
    name = f"{page_type.__name__}-{policy.local_bytes}"
    cache = stack.enter_context(closing(layer.cache(name, policy=policy)))
    cache.relay()

    def load(conn: Connection, product_id: int) -> object:  # noqa: ARG001 -- the key
        return page

    load.__annotations__["return"] = page_type
    cached = cache.cached(load)
    while policy.local_bytes and not cache.stats().local_hits:
        cached(NUMBER)

    operations = OPERATIONS if policy.local_bytes else OPERATIONS_IN_REDIS

    def run() -> int:
        for _ in range(operations):
            cached(NUMBER)
        return operations

    return run


def _dictionary(page: Page) -> Callable[[], int]:
    kept = {NUMBER: (page, time.monotonic() + TTL_SECONDS)}

    def cached(number: int) -> Page | None:
        value, until = kept[number]
        return value if time.monotonic() < until else None

    def run() -> int:
        for _ in range(OPERATIONS):
            cached(NUMBER)
        return OPERATIONS

    return run


def _rival(page: Page) -> Callable[[], int]:
    region = make_region().configure("dogpile.cache.memory", expiration_time=TTL_SECONDS)

    @region.cache_on_arguments()
    def cached(product_id: int) -> Page:  # noqa: ARG001 -- the key
        return page

    def run() -> int:
        for _ in range(OPERATIONS):
            cached(NUMBER)
        return OPERATIONS

    return run
