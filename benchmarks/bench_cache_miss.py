"""A miss: look, load and store, beside the same by hand and beside ``dogpile.cache``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count

from dogpile.cache import make_region
from sqlalchemy import Connection, text

from benchmarks.interleaving import Claim, Contestant
from benchmarks.pages import SIZES, TTL_SECONDS, Page, decode, encode, page_of
from datapatterns import DataLayer
from datapatterns.cache_aside import CachePolicy

CASES = SIZES
OPERATIONS = 300

_LOAD = text("SELECT product_id, title, text, cents FROM page WHERE product_id = :n")


@contextmanager
def claim(size: int) -> Iterator[Claim]:
    """One thread reads keys that are not there; a row is loaded by its primary key."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        page = page_of(size)
        with layer.engine.begin() as conn:
            conn.execute(
                text(
                    "CREATE TABLE page (product_id bigint PRIMARY KEY, title text NOT NULL,"
                    " text text NOT NULL, cents int NOT NULL)"
                )
            )
            conn.execute(
                text(
                    "INSERT INTO page SELECT n, :title, :text, :cents FROM generate_series(1, 9) n"
                ),
                {"title": page.title, "text": page.text, "cents": page.cents},
            )
        yield Claim(
            f"cache miss, {size} bytes",
            "misses",
            [
                Contestant("cached function", "ours", _ours(stack, layer)),
                Contestant("get, load, set, by hand", "limit", _limit(layer)),
                Contestant("dogpile.cache, distributed lock", "rival", _rival(layer)),
            ],
        )


def _load(conn: Connection, number: int) -> Page:
    row = conn.execute(_LOAD, {"n": number % 9 + 1}).one()
    return Page(*row)


def _ours(stack: ExitStack, layer: DataLayer) -> Callable[[], int]:
    cache = stack.enter_context(
        closing(layer.cache("page", policy=CachePolicy(ttl_seconds=TTL_SECONDS)))
    )
    cache.relay()
    page, numbers = cache.cached(_load), count()
    return _batch(lambda: page(next(numbers)))


def _limit(layer: DataLayer) -> Callable[[], int]:
    client, engine, numbers = layer.redis, layer.engine, count()

    def page() -> Page:
        number = next(numbers)
        found = client.get(f"bare:{number}")
        if found is not None:
            return decode(found)  # type: ignore[arg-type]  # bytes
        with engine.connect() as conn:
            loaded = _load(conn, number)
        client.set(f"bare:{number}", encode(loaded), ex=TTL_SECONDS)
        return loaded

    return _batch(page)


def _rival(layer: DataLayer) -> Callable[[], int]:
    region = make_region(serializer=encode, deserializer=decode).configure(
        "dogpile.cache.redis",
        expiration_time=TTL_SECONDS,
        arguments={
            "url": layer.settings.redis_url,
            "redis_expiration_time": 2 * TTL_SECONDS,
            "distributed_lock": True,
            "lock_timeout": 3,
            "thread_local_lock": False,
        },
    )
    numbers = count()

    def load(number: int) -> Page:
        with layer.engine.connect() as conn:
            return _load(conn, number)

    def page() -> object:
        number = next(numbers)
        return region.get_or_create(f"page:{number}", load, creator_args=((number,), {}))

    return _batch(page)


def _batch(miss: Callable[[], object]) -> Callable[[], int]:
    def run() -> int:
        for _ in range(OPERATIONS):
            miss()
        return OPERATIONS

    return run
