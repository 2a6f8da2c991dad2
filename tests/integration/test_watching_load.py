"""What shards are asked is counted by bucket and by key, of all processes; never in the way."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier

import pytest
from sqlalchemy import URL, Text, create_engine, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import SettingsError
from datapatterns.sharding import EntityGroup, Hash, HotKey, ShardCluster
from datapatterns.sharding.schema import load_tables
from datapatterns.sharding.seeing.load_watch import LoadWatch
from datapatterns.testing import Databases
from tests.fixtures.caches import until
from tests.fixtures.shard_model import Basket, create_tables, households, named

pytestmark = pytest.mark.postgres

_TABLES = load_tables("datapatterns")
TABLES = (_TABLES.bucket_load, _TABLES.hot_key, _TABLES.hot_key_total)


@contextmanager
def opened(urls: list[URL], *, control: URL | None = None) -> Iterator[ShardCluster]:
    with ShardCluster(
        control=control or urls[0],
        shards=named(urls),
        groups=[households],
        watch_load=True,
        poll_seconds=3600,
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    for url in shard_urls[:2]:
        create_tables(url)
    with opened(shard_urls[:2]) as cluster:
        cluster.create_map()
        yield cluster


def counted(cluster: ShardCluster) -> dict[int, tuple[int, int]]:
    """Return reads and writes of each bucket that had any."""
    return {
        bucket.bucket: (bucket.reads, bucket.writes)
        for shard in cluster.stats()
        for bucket in shard.buckets
        if bucket.reads or bucket.writes
    }


def hits(found: list[HotKey]) -> dict[object, tuple[int, int]]:
    return {each.key: (each.hits_min, each.hits_max) for each in found}


def age(cluster: ShardCluster, *, hours: int) -> None:
    with cluster.engines["s0"].begin() as conn:
        for table in TABLES:
            conn.execute(update(table).values(minute=table.c.minute - timedelta(hours=hours)))


def watch_of(cluster: ShardCluster) -> LoadWatch:
    assert cluster.load is not None
    return cluster.load


def bucket_of(key: int) -> int:
    return households.strategy.bucket(key)


# Every way to a shard -------------------------------------------------------------------------


def flushed(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.add(Basket(household_id=7, id=1))


def inserted(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(insert(Basket), [{"household_id": 7, "id": n} for n in range(3)])


def updated(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(update(Basket).where(Basket.household_id == 7).values(cents=1))


def deleted(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.execute(delete(Basket).where(Basket.household_id == 7))


def fetched(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.get(Basket, (7, 1))


def locked(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.scalars(select(Basket).where(Basket.household_id == 7).with_for_update()).all()


def flushed_pinned(cluster: ShardCluster) -> None:
    with cluster.on(households, household_id=7) as session, session.begin():
        session.add(Basket(household_id=7, id=1))


def updated_pinned(cluster: ShardCluster) -> None:
    with cluster.on(households, household_id=7) as session, session.begin():
        session.execute(update(Basket).values(cents=1))


def read_pinned(cluster: ShardCluster) -> None:
    with cluster.on(households, household_id=7) as session:
        session.scalars(select(Basket)).all()


def read_by_core(cluster: ShardCluster) -> None:
    with cluster.connect(households, household_id=7) as conn:
        conn.execute(select(Basket.id).where(Basket.household_id == 7))


def written_by_core(cluster: ShardCluster) -> None:
    with cluster.connect(households, household_id=7) as conn, conn.begin():
        conn.execute(text("\n DELETE FROM basket WHERE household_id = 7"))


def written_atomically(cluster: ShardCluster) -> None:
    with cluster.atomically() as work:
        work.connect(households, household_id=7).execute(delete(Basket))


def on_asyncio(cluster: ShardCluster, work: Callable[[], Coroutine[None, None, None]]) -> None:
    async def closing() -> None:
        await work()
        await cluster.aclose()

    asyncio.run(closing())


def fetched_async(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_session() as session:
            await session.get(Basket, (7, 1))

    on_asyncio(cluster, work)


def flushed_async(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_session() as session:
            session.add(Basket(household_id=7, id=1))
            await session.commit()

    on_asyncio(cluster, work)


def read_pinned_async(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_on(households, household_id=7) as session:
            await session.scalars(select(Basket))

    on_asyncio(cluster, work)


def written_by_core_async(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_connect(households, household_id=7) as conn:
            await conn.execute(delete(Basket).where(Basket.household_id == 7))

    on_asyncio(cluster, work)


@pytest.mark.parametrize(
    ("do", "expected"),
    [
        (flushed, (0, 1)),
        (inserted, (0, 1)),
        (updated, (0, 1)),
        (deleted, (0, 1)),
        (fetched, (1, 0)),
        (locked, (1, 0)),
        (flushed_pinned, (0, 1)),
        (updated_pinned, (0, 1)),
        (read_pinned, (1, 0)),
        (read_by_core, (1, 0)),
        (written_by_core, (0, 1)),
        (written_atomically, (0, 1)),
        (fetched_async, (1, 0)),
        (flushed_async, (0, 1)),
        (read_pinned_async, (1, 0)),
        (written_by_core_async, (0, 1)),
    ],
)
def test_each_way_to_a_key_is_counted(
    cluster: ShardCluster, do: Callable[[ShardCluster], None], expected: tuple[int, int]
) -> None:
    do(cluster)

    assert counted(cluster) == {bucket_of(7): expected}
    assert hits(cluster.hot_keys(households)) == {7: (1, 1)}


def test_a_statement_for_several_keys_counts_for_each(cluster: ShardCluster) -> None:
    keys = range(20)
    with cluster.session() as session:
        session.scalars(select(Basket).where(Basket.household_id.in_(keys))).all()
        session.scalars(select(Basket).execution_options(scatter=True)).all()  # weighs on all alike

    assert counted(cluster) == dict.fromkeys(map(bucket_of, keys), (1, 0))
    assert hits(cluster.hot_keys(households)) == dict.fromkeys(keys, (1, 1))


def test_objects_of_a_flush_share_its_time(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session:
        session.add_all([Basket(household_id=key, id=1) for key in (1, 1_000)])
        session.add(Basket(household_id=1, id=2))
        session.flush()

    found = {each.key: each for each in cluster.hot_keys(households)}
    assert {key: each.hits_min for key, each in found.items()} == {1: 2, 1_000: 1}
    assert found[1].busy_seconds == pytest.approx(2 * found[1_000].busy_seconds, rel=0.1, abs=1e-5)
    assert found[1].busy_seconds > 0


def test_what_fails_is_not_counted(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.add(Basket(household_id=7, id=1))
    with cluster.session() as session:
        session.add(Basket(household_id=7, id=1))
        with pytest.raises(IntegrityError):
            session.flush()
    with cluster.session() as session, pytest.raises(IntegrityError):
        session.execute(insert(Basket), {"household_id": 7, "id": 1})

    assert counted(cluster) == {bucket_of(7): (0, 1)}


def test_nothing_is_counted_unless_it_is_wanted(shard_urls: list[URL]) -> None:
    create_tables(shard_urls[0])
    with ShardCluster(
        control=shard_urls[0], shards=named(shard_urls[:1]), groups=[households]
    ) as cluster:
        cluster.create_map()
        flushed(cluster)
        fetched(cluster)

        assert counted(cluster) == {}
        assert cluster.hot_keys(households) == []
        with pytest.raises(SettingsError, match="watch_load=True"):
            cluster.plan(households, by="load")


# Keys of other types --------------------------------------------------------------------------

tenants = EntityGroup("tenant", strategy=Hash(buckets=16), key=Text)


def test_keys_that_no_index_takes_are_counted_for_their_bucket_only(
    shard_urls: list[URL],
) -> None:
    url = shard_urls[0]
    with ShardCluster(
        control=url, shards=named([url]), groups=[tenants], watch_load=True
    ) as cluster:
        cluster.create_map()
        keys = ["", "é😀", "Robert'); --", "x" * 10_000, "a\0b", "\ud800"]
        group_id = cluster.router.map_of(tenants).group_id
        for key in keys:
            watch_of(cluster).add(group_id, (3,), (key,), writes=False)

        assert sum(reads for reads, _ in counted(cluster).values()) == len(keys)
        assert hits(cluster.hot_keys(tenants)) == dict.fromkeys(keys[:3], (1, 1))
        assert watch_of(cluster).lost_hits == 0


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# Several processes, threads, and time ---------------------------------------------------------


def test_counts_of_several_processes_add_up(cluster: ShardCluster, shard_urls: list[URL]) -> None:
    fetched(cluster)
    with opened(shard_urls[:2]) as other:
        fetched(other)
        inserted(other)
    fetched(cluster)

    assert counted(cluster) == {bucket_of(7): (3, 1)}
    assert hits(cluster.hot_keys(households)) == {7: (4, 4)}


def test_bounds_of_keys_hold_over_processes_that_saw_different_ones(shard_urls: list[URL]) -> None:
    """One process holds the key, another may have dropped it: its floor counts as possible hits."""
    create_tables(shard_urls[0])
    with opened(shard_urls[:1]) as cluster:
        cluster.create_map()
        group_id = cluster.router.map_of(households).group_id
    engine = create_engine(shard_urls[0])
    true = dict.fromkeys(range(2_000), 0)
    for process in range(3):
        watch = LoadWatch(engine, flush_seconds=3600)
        for key in range(2_000):
            times = 1 + 50 * (key % 97 == process) + (key == 13) * 400
            true[key] += times
            for _ in range(times):
                watch.add(group_id, (bucket_of(key),), (key,), writes=False)
        watch.flush()
        watch.close()
    engine.dispose()

    with opened(shard_urls[:1]) as cluster:
        found = cluster.hot_keys(households, limit=1_000)
        busiest = max(cluster.stats()[0].buckets, key=lambda bucket: bucket.reads)

    assert found[0].key == 13
    assert found[0].hits_min > 1_100
    assert found[0].bucket == busiest.bucket == bucket_of(13)
    assert all(each.hits_min <= true[int(str(each.key))] <= each.hits_max for each in found)
    assert len(found) > 20


def test_threads_lose_no_hit(cluster: ShardCluster, eager_switching: None) -> None:
    del eager_switching
    watch, group_id = watch_of(cluster), cluster.router.map_of(households).group_id
    threads, rounds = 4, 2_000
    start = Barrier(threads)

    def count(number: int) -> None:
        start.wait()
        for each in range(rounds):
            watch.add(group_id, (each % 5,), (number, each), writes=False, busy_us=1)
            if each % 100 == 0:
                watch.flush()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(count, range(threads)))

    assert {bucket: reads for bucket, (reads, _) in counted(cluster).items()} == dict.fromkeys(
        range(5), threads * rounds // 5
    )
    found = {each.key: each for each in cluster.hot_keys(households, limit=100)}
    for number in range(threads):
        assert found[number].hits_min <= rounds + threads <= found[number].hits_max + threads


def test_processes_that_write_the_same_rows_wait_in_one_line(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    """Two that lock rows in another order would wait for each other, and one would lose."""
    group_id = cluster.router.map_of(households).group_id
    buckets, rounds = 400, 12
    start = Barrier(2)
    engine = create_engine(shard_urls[0])

    def flush(order: range) -> int:
        watch = LoadWatch(engine, flush_seconds=3600)
        for _ in range(rounds):
            for bucket in order:
                watch.add(group_id, (bucket,), (), writes=False)
            start.wait()
            watch.flush()
        watch.close()
        return watch.lost_hits

    with ThreadPoolExecutor(2) as pool:
        lost = list(pool.map(flush, (range(buckets), range(buckets - 1, -1, -1))))
    engine.dispose()

    assert lost == [0, 0]
    with cluster.engines["s0"].connect() as conn:
        assert conn.scalar(select(func.sum(TABLES[0].c.reads))) == 2 * buckets * rounds


def test_what_was_counted_is_written_down_by_itself(
    cluster: ShardCluster, shard_urls: list[URL]
) -> None:
    engine = create_engine(shard_urls[0])
    group_id = cluster.router.map_of(households).group_id
    watch = LoadWatch(engine, flush_seconds=0.01)
    watch.add(group_id, (3,), (7,), writes=True)

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        until(lambda: bool(conn.scalar(select(TABLES[0].c.writes))))
    watch.close()
    engine.dispose()


def test_closing_writes_down_the_rest(cluster: ShardCluster, shard_urls: list[URL]) -> None:
    with opened(shard_urls[:2]) as other:
        fetched(other)

    assert "datapatterns-load" not in {thread.name for thread in threading.enumerate()}
    assert counted(cluster) == {bucket_of(7): (1, 0)}


def test_what_is_old_is_forgotten(cluster: ShardCluster) -> None:
    fetched(cluster)
    watch_of(cluster).flush()
    age(cluster, hours=25)

    fetched(cluster)

    assert counted(cluster) == {bucket_of(7): (1, 0)}
    with cluster.engines["s0"].connect() as conn:
        for table in TABLES:
            assert conn.scalar(select(func.count()).select_from(table)) == 1


def test_only_what_is_recent_is_looked_at(cluster: ShardCluster) -> None:
    fetched(cluster)
    watch_of(cluster).flush()
    age(cluster, hours=2)

    assert counted(cluster) == {}
    assert cluster.hot_keys(households) == []
    assert hits(cluster.hot_keys(households, within=timedelta(hours=3))) == {7: (1, 1)}


# What goes wrong ------------------------------------------------------------------------------


def test_a_dead_control_database_loses_statistics_only(
    shard_urls: list[URL], databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    control = databases.new()
    create_tables(shard_urls[0])
    with opened(shard_urls[:1], control=control) as cluster:
        cluster.create_map()
        fetched(cluster)
        databases.drop(control)

        watch_of(cluster).flush()
        flushed(cluster)
        fetched(cluster)

        assert watch_of(cluster).lost_hits == 1
    assert watch_of(cluster).lost_hits == 3
    assert "could not be written down" in caplog.text


def test_a_role_that_may_not_write_statistics_loses_them_only(
    cluster: ShardCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("ALTER TABLE datapatterns.bucket_load RENAME TO elsewhere"))

    flushed(cluster)
    watch_of(cluster).flush()

    assert watch_of(cluster).lost_hits == 1
    assert "could not be written down" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_write_down_what_its_parent_counted(
    cluster: ShardCluster,
) -> None:
    fetched(cluster)

    child = os.fork()
    if child == 0:
        os._exit(watch_of(cluster).pending_hits)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert counted(cluster) == {bucket_of(7): (1, 0)}
