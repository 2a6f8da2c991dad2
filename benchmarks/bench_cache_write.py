"""A row is updated and what was cached of it is forgotten, beside the bare update; 8 writers."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from threading import Event, Thread

from redis import Redis
from sqlalchemy import URL, Engine, MetaData, Table, create_engine, text

from benchmarks.interleaving import Claim, Contestant
from benchmarks.writers import Batch, Writers
from datapatterns import DataLayer
from datapatterns.cache_aside import Cache, CachePolicy

WRITERS = 8
OPERATIONS = 400
"""By all writers, in a round."""

_UPDATE = text("UPDATE page SET cents = cents + 1 WHERE product_id = :n")
_BARE_UPDATE = text("UPDATE bare_page SET cents = cents + 1 WHERE product_id = :n")


CASES = ("told by the writer", "told by triggers")


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """Every update is committed by itself, durably; each writer has rows of its own.

    Told by triggers, the writer does nothing for the cache; a relay goes on beside all contestants.
    """
    is_captured = case == "told by triggers"
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url, redis_url = layer.engine.url, str(layer.settings.redis_url)
        cache = stack.enter_context(closing(layer.cache("page")))
        with layer.engine.begin() as conn:
            for name in ("page", "bare_page"):
                conn.execute(
                    text(f"CREATE TABLE {name} (product_id bigint PRIMARY KEY, cents int)")
                )
                conn.execute(text(f"INSERT INTO {name} SELECT n, 0 FROM generate_series(0, 799) n"))
            if is_captured:
                cache.capture(conn, Table("page", MetaData(), autoload_with=conn))
        cache.relay()
        stack.enter_context(relaying(cache))
        ours, limit, by_hand = (
            stack.enter_context(
                Writers(
                    partial(kind, redis_url=redis_url, operations=OPERATIONS // WRITERS),
                    url,
                    count=WRITERS,
                )
            )
            for kind in (_captured if is_captured else _ours, _limit, _by_hand)
        )
        yield Claim(
            f"update and forget, {case}, {WRITERS} at once",
            "updates",
            [
                Contestant(
                    "cache.capture" if is_captured else "cache.writes, invalidate_in",
                    "ours",
                    ours.run,
                ),
                Contestant("update, nothing forgotten", "limit", limit.run),
                Contestant("update, DEL after the commit", "rival", by_hand.run),
            ],
        )


@contextmanager
def relaying(cache: Cache) -> Iterator[None]:
    """Let a relay run as a worker would, once a second."""
    over = Event()

    def relay() -> None:
        while not over.wait(1):
            cache.relay()

    thread = Thread(target=relay)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
def _captured(url: URL, writer: int, *, redis_url: str, operations: int) -> Iterator[Batch]:
    del redis_url
    with engine_of(url) as engine:

        def batch() -> int:
            for number in range(operations):
                with engine.begin() as conn:
                    conn.execute(_UPDATE, {"n": writer * 100 + number})
            return operations

        yield batch


@contextmanager
def _limit(url: URL, writer: int, *, redis_url: str, operations: int) -> Iterator[Batch]:
    del redis_url
    with engine_of(url) as engine:

        def batch() -> int:
            for number in range(operations):
                with engine.begin() as conn:
                    conn.execute(_BARE_UPDATE, {"n": writer * 100 + number})
            return operations

        yield batch


@contextmanager
def _by_hand(url: URL, writer: int, *, redis_url: str, operations: int) -> Iterator[Batch]:
    with engine_of(url) as engine, closing(Redis.from_url(redis_url)) as client:

        def batch() -> int:
            for number in range(operations):
                with engine.begin() as conn:
                    conn.execute(_BARE_UPDATE, {"n": writer * 100 + number})
                client.delete(f"page:{writer * 100 + number}")
            return operations

        yield batch
