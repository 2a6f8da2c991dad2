"""A checked, decoded hit, beside ``Redis.get()`` and decoding, and beside ``dogpile.cache``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from dogpile.cache import make_region
from sqlalchemy import Connection

from benchmarks.interleaving import Claim, Contestant
from benchmarks.pages import NUMBER, SIZES, TTL_SECONDS, Page, decode, encode, page_of
from datapatterns import DataLayer
from datapatterns.cache_aside import CachePolicy

CASES = SIZES
OPERATIONS = 3_000


@contextmanager
def claim(size: int) -> Iterator[Claim]:
    """One thread reads one key that is there, over a Unix socket."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        page = page_of(size)
        yield Claim(
            f"cache hit, {size} bytes",
            "hits",
            [
                Contestant("cached function", "ours", _ours(stack, layer, page)),
                Contestant("Redis.get and decode", "limit", _limit(layer, page)),
                Contestant("dogpile.cache, msgspec", "rival", _rival(layer, page)),
            ],
        )


def _ours(stack: ExitStack, layer: DataLayer, page: Page) -> Callable[[], int]:
    cache = stack.enter_context(
        closing(layer.cache("page", policy=CachePolicy(ttl_seconds=TTL_SECONDS)))
    )
    cache.relay()

    @cache.cached
    def cached(conn: Connection, product_id: int) -> Page:  # noqa: ARG001 -- the key
        return page

    def run() -> int:
        for _ in range(OPERATIONS):
            cached(NUMBER)
        return OPERATIONS

    return run


def _limit(layer: DataLayer, page: Page) -> Callable[[], int]:
    client = layer.redis
    client.set("bare:page", encode(page))

    def run() -> int:
        for _ in range(OPERATIONS):
            decode(client.get("bare:page"))  # type: ignore[arg-type]  # there it is
        return OPERATIONS

    return run


def _rival(layer: DataLayer, page: Page) -> Callable[[], int]:
    region = make_region(serializer=encode, deserializer=decode).configure(
        "dogpile.cache.redis",
        expiration_time=TTL_SECONDS,
        arguments={"url": layer.settings.redis_url, "redis_expiration_time": 2 * TTL_SECONDS},
    )

    def run() -> int:
        for _ in range(OPERATIONS):
            region.get_or_create("page", lambda: page)
        return OPERATIONS

    return run
