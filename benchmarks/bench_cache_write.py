"""A row is updated and what was cached of it is forgotten, beside the bare update; 8 writers."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from redis import Redis
from sqlalchemy import URL, Engine, create_engine, text

from benchmarks.interleaving import Claim, Contestant
from benchmarks.writers import Batch, Writers
from datapatterns import DataLayer
from datapatterns.cache_aside import Cache, CachePolicy

WRITERS = 8
OPERATIONS = 400
"""By all writers, in a round."""

_UPDATE = text("UPDATE page SET cents = cents + 1 WHERE product_id = :n")


@contextmanager
def claim() -> Iterator[Claim]:
    """Every update is committed by itself, durably; each writer has rows of its own."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url, redis_url = layer.engine.url, str(layer.settings.redis_url)
        with layer.engine.begin() as conn:
            conn.execute(text("CREATE TABLE page (product_id bigint PRIMARY KEY, cents int)"))
            conn.execute(text("INSERT INTO page SELECT n, 0 FROM generate_series(0, 799) n"))
        cache = stack.enter_context(closing(layer.cache("page")))
        cache.relay()
        ours, limit, by_hand = (
            stack.enter_context(
                Writers(
                    partial(kind, redis_url=redis_url, operations=OPERATIONS // WRITERS),
                    url,
                    count=WRITERS,
                )
            )
            for kind in (_ours, _limit, _by_hand)
        )
        yield Claim(
            f"update and forget, {WRITERS} at once",
            "updates",
            [
                Contestant("cache.writes, invalidate_in", "ours", ours.run),
                Contestant("update, nothing forgotten", "limit", limit.run),
                Contestant("update, DEL after the commit", "rival", by_hand.run),
            ],
        )


@contextmanager
def engine_of(url: URL) -> Iterator[Engine]:
    engine = create_engine(url)
    yield engine
    engine.dispose()


@contextmanager
def _ours(url: URL, writer: int, *, redis_url: str, operations: int) -> Iterator[Batch]:
    policy = CachePolicy(redis_timeout_seconds=5)
    with (
        engine_of(url) as engine,
        closing(Cache(redis_url, engine, name="page", policy=policy)) as cache,
    ):

        def batch() -> int:
            for number in range(operations):
                with cache.writes() as conn:
                    conn.execute(_UPDATE, {"n": writer * 100 + number})
                    cache.invalidate_in(conn, writer * 100 + number)
            return operations

        yield batch


@contextmanager
def _limit(url: URL, writer: int, *, redis_url: str, operations: int) -> Iterator[Batch]:
    del redis_url
    with engine_of(url) as engine:

        def batch() -> int:
            for number in range(operations):
                with engine.begin() as conn:
                    conn.execute(_UPDATE, {"n": writer * 100 + number})
            return operations

        yield batch


@contextmanager
def _by_hand(url: URL, writer: int, *, redis_url: str, operations: int) -> Iterator[Batch]:
    with engine_of(url) as engine, closing(Redis.from_url(redis_url)) as client:

        def batch() -> int:
            for number in range(operations):
                with engine.begin() as conn:
                    conn.execute(_UPDATE, {"n": writer * 100 + number})
                client.delete(f"page:{writer * 100 + number}")
            return operations

        yield batch
