"""A checked, decoded hit, beside a plain ``Redis.get()`` and beside ``dogpile.cache``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import msgspec
from dogpile.cache import make_region
from sqlalchemy import Connection

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.cache_aside import CachePolicy

OPERATIONS = 3_000
TTL_SECONDS = 3_600


@dataclass(frozen=True, slots=True)
class Page:
    """About as much as a product page needs."""

    product_id: int
    title: str
    text: str
    cents: int


PAGE = Page(819312, "Milk", "m" * 400, 149)


@contextmanager
def claim() -> Iterator[Claim]:
    """One thread reads one key that is there, over a Unix socket."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        yield Claim(
            "cache hit",
            "hits",
            [
                Contestant("cached function", "ours", _ours(stack, layer)),
                Contestant("Redis.get, not decoded", "limit", _limit(layer)),
                Contestant("dogpile.cache, msgspec", "rival", _rival(layer)),
            ],
        )


def _ours(stack: ExitStack, layer: DataLayer) -> Callable[[], int]:
    cache = stack.enter_context(
        closing(layer.cache("page", policy=CachePolicy(ttl_seconds=TTL_SECONDS)))
    )
    cache.relay()

    @cache.cached
    def page(conn: Connection, product_id: int) -> Page:  # noqa: ARG001 -- the key
        return PAGE

    def run() -> int:
        for _ in range(OPERATIONS):
            page(819312)
        return OPERATIONS

    return run


def _limit(layer: DataLayer) -> Callable[[], int]:
    client = layer.redis
    client.set("bare:819312", msgspec.msgpack.encode(PAGE))

    def run() -> int:
        for _ in range(OPERATIONS):
            client.get("bare:819312")
        return OPERATIONS

    return run


def _rival(layer: DataLayer) -> Callable[[], int]:
    region = make_region(
        serializer=msgspec.msgpack.encode, deserializer=msgspec.msgpack.Decoder(Page).decode
    ).configure(
        "dogpile.cache.redis",
        expiration_time=TTL_SECONDS,
        arguments={"url": layer.settings.redis_url, "redis_expiration_time": 2 * TTL_SECONDS},
    )

    def run() -> int:
        for _ in range(OPERATIONS):
            region.get_or_create("page:819312", lambda: PAGE)
        return OPERATIONS

    return run
