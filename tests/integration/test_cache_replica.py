"""Loading from a standby, as far as it has replayed what was forgotten."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache, older_snapshots, replica
from datapatterns.change_log.snapshots import Snapshot
from datapatterns.errors import SettingsError
from tests.fixtures.caches import PATIENT, create_products, name_of, rename, until
from tests.fixtures.standbys import Pair, replicated

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        create_products(pair.primary)
        yield pair


@pytest.fixture
def shop(pair: Pair) -> Pair:
    with pair.primary.begin() as conn:
        conn.execute(text("UPDATE product SET name = 'first'"))
    return pair


@pytest.fixture
def cache(shop: Pair, redis_client: Redis) -> Iterator[Cache]:
    with open_on(shop.standby, shop, redis_client) as cache:
        cache.relay()
        catch_up(shop)
        yield cache


@contextmanager
def open_on(load_from: Engine, pair: Pair, redis_client: Redis) -> Iterator[Cache]:
    with closing(
        Cache(redis_client, pair.primary, name="product", policy=PATIENT, load_from=load_from)
    ) as cache:
        yield cache


def catch_up(pair: Pair) -> None:
    """Wait until the standby has replayed whatever has been written."""
    with in_autocommit(pair.primary) as conn:
        written = conn.scalar(text("SELECT pg_current_wal_flush_lsn()::text"))
    reached = text("SELECT pg_last_wal_replay_lsn() >= CAST(:written AS pg_lsn)")
    with in_autocommit(pair.standby) as conn:
        until(lambda: bool(conn.scalar(reached, {"written": written})))


@contextmanager
def in_autocommit(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        yield conn


@contextmanager
def lagging(pair: Pair) -> Iterator[None]:
    """Let the standby replay nothing."""
    paused = text("SELECT pg_get_wal_replay_pause_state() = 'paused'")
    with in_autocommit(pair.standby) as conn:
        conn.execute(text("SELECT pg_wal_replay_pause()"))
        until(lambda: bool(conn.scalar(paused)))
        try:
            yield
        finally:
            conn.execute(text("SELECT pg_wal_replay_resume()"))


def read(cache: Cache, number: int = 1) -> str | None:
    return cache.get_or_load(number, lambda conn: name_of(conn, number))


def write(cache: Cache, number: int = 1) -> None:
    with cache.writes() as conn:
        rename(conn, number, "second")
        cache.invalidate_in(conn, number)


def served(cache: Cache) -> tuple[int, int, int]:
    stats = cache.stats()
    return stats.loads, stats.replica_loads, stats.filled


def test_what_the_replica_has_replayed_it_serves(cache: Cache, shop: Pair) -> None:
    assert read(cache) == "first"
    write(cache)
    catch_up(shop)

    assert read(cache) == "second"
    assert served(cache) == (2, 2, 2)


def test_what_it_has_not_the_primary_does(cache: Cache, shop: Pair) -> None:
    with lagging(shop):
        write(cache)

        assert (read(cache), read(cache, 2)) == ("second", "first")
        assert served(cache) == (2, 1, 2)


def test_a_replica_older_than_what_redis_has_lost_is_not_asked(
    cache: Cache, shop: Pair, redis_client: Redis
) -> None:
    with lagging(shop):
        write(cache)
        redis_client.delete(*redis_client.keys("*:milestones"), *redis_client.keys("*:writers:*"))
        cache.relay()

        assert read(cache) == "second"
        assert served(cache) == (1, 0, 1)


@contextmanager
def a_late_commit_beside(cache: Cache, shop: Pair) -> Iterator[None]:
    """Commit what began before others, while the standby has seen only these."""
    with cache.writes() as late:
        late.execute(text("INSERT INTO product VALUES (0, 'early')"))
        with shop.primary.begin() as conn:
            rename(conn, 2, "quick")
        catch_up(shop)
        with shop.standby.connect() as conn:
            assert name_of(conn, 2) == "quick"
        pausing = lagging(shop)
        pausing.__enter__()
        late.execute(text("DELETE FROM product WHERE id = 0"))
        rename(late, 1, "second")
        cache.invalidate_in(late, 1)
    try:
        yield
    finally:
        pausing.__exit__(None, None, None)


def test_what_a_standby_takes_for_ended_may_be_in_progress(cache: Cache, shop: Pair) -> None:
    with a_late_commit_beside(cache, shop):
        assert read(cache) == "second"
        assert cache.stats().replica_loads == 0


def test_a_standbys_own_word_would_store_what_is_old(
    cache: Cache, shop: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believed(snapshot: Snapshot, *, is_standby: bool) -> Snapshot:
        assert is_standby
        return snapshot

    monkeypatch.setattr(older_snapshots, "seen_for_certain", believed)
    with a_late_commit_beside(cache, shop):
        assert read(cache) == "first"
        assert cache.stats().filled == 1


def test_a_transaction_on_a_standby_gives_others_what_it_has_replayed(
    cache: Cache, shop: Pair
) -> None:
    moment = shop.standby.execution_options(isolation_level="REPEATABLE READ")
    with moment.connect() as conn:
        assert cache.get_or_load(1, lambda own: name_of(own, 1), within=conn) == "first"
        assert cache.stats().filled == 1
        write(cache)
        assert cache.get_or_load(1, lambda own: name_of(own, 1), within=conn) == "first"
        assert (cache.stats().filled, cache.stats().unstored) == (1, 1)
    assert read(cache) == "second"


def test_while_the_replica_is_away_the_primary_serves(shop: Pair, redis_client: Redis) -> None:
    nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with open_on(nowhere, shop, redis_client) as cache:
        assert [read(cache, number) for number in range(1, 9)] == ["first"] * 8
        assert served(cache) == (8, 0, 8)
    nowhere.dispose()


def test_what_is_no_standby_is_not_asked(shop: Pair, redis_client: Redis) -> None:
    with open_on(shop.primary, shop, redis_client) as cache:
        assert read(cache) == "first"
        assert served(cache) == (1, 0, 1)


def test_a_standby_of_another_database_is_refused(
    shop: Pair, engine: Engine, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "is_standby", lambda _: True)
    with (
        open_on(engine, shop, redis_client) as cache,
        pytest.raises(SettingsError, match="another database"),
    ):
        read(cache)


def fails_with(state: str, cache: Cache, calls: list[int]) -> str | None:
    def load(conn: Connection) -> str | None:
        calls.append(1)
        if len(calls) == 1:
            conn.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$"))
        return name_of(conn, 1)

    return cache.get_or_load(1, load)


def test_a_load_that_replaying_has_interrupted_is_done_by_the_primary(cache: Cache) -> None:
    calls: list[int] = []

    assert fails_with("40001", cache, calls) == "first"
    assert (len(calls), served(cache)) == (2, (1, 0, 1))


def test_a_load_that_fails_is_not_repeated(cache: Cache) -> None:
    calls: list[int] = []

    with pytest.raises(DBAPIError):
        fails_with("22012", cache, calls)
    assert len(calls) == 1


def test_tasks_load_from_a_replica(shop: Pair, redis_url: str, redis_client: Redis) -> None:
    assert redis_client.ping()

    async def run() -> None:
        primary, standby = map(create_async_engine, (shop.primary.url, shop.standby.url))
        cache = AsyncCache(redis_url, primary, name="product", policy=PATIENT, load_from=standby)

        async def read() -> str | None:
            async def load(conn: AsyncConnection) -> str | None:
                return await conn.run_sync(name_of, 1)

            return await cache.get_or_load(1, load)

        try:
            await cache.relay()
            await asyncio.to_thread(catch_up, shop)
            assert await read() == "first"
            with lagging(shop):
                async with cache.writes() as conn:
                    await conn.run_sync(rename, 1, "second")
                    await conn.run_sync(cache.invalidate_in, 1)
                assert await read() == "second"
            stats = cache.stats()
            assert (stats.loads, stats.replica_loads, stats.filled) == (2, 1, 2)
        finally:
            await cache.close()
            await primary.dispose()
            await standby.dispose()

    asyncio.run(run())
