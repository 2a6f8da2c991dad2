"""Sessions and connections over shards on asyncio."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest
from sqlalchemy import URL, Connection, func, insert, select, text, update
from sqlalchemy.orm import selectinload

from datapatterns.errors import (
    MultiShardWriteError,
    ScatterRefusedError,
    ShardUnavailableError,
    StaleShardMapError,
)
from datapatterns.failpoints import armed
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sharding import ShardCluster
from tests.fixtures.atomic import (
    baskets,
    decisions,
    keys_on_each,
    needs_prepared_transactions,
    prepared,
    sums,
)
from tests.fixtures.blocking import until_waiting
from tests.fixtures.cancelling import every_await
from tests.fixtures.effort import THOROUGH
from tests.fixtures.shard_model import Basket, Line, households, named, sharded_shop

pytestmark = pytest.mark.postgres

T = TypeVar("T")

KEYS = range(9)
SHARDS = 3
EVERYTHING = select(Basket).order_by(Basket.household_id).execution_options(scatter=True)
WITH_LINES = EVERYTHING.options(selectinload(Basket.lines))


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    """A basket with a line for each household."""
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:SHARDS]) as cluster:
        for shard, keys in cluster.placed(households, KEYS, key=lambda key: key).items():
            with cluster.begin_bulk(households, shard) as conn:
                conn.execute(
                    insert(Basket), [{"household_id": key, "id": 1, "cents": key} for key in keys]
                )
                conn.execute(
                    insert(Line),
                    [{"household_id": key, "basket_id": 1, "number": 1} for key in keys],
                )
        yield cluster


def run(cluster: ShardCluster, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it in a loop; afterwards no connection is in use, and none is open."""

    async def closing() -> T:
        try:
            return await work()
        finally:
            assert in_use(cluster) == 0
            await cluster.aclose()

    return asyncio.run(closing())


def in_use(cluster: ShardCluster) -> int:
    """How many connections of all event loops are not in their pools."""
    return sum(
        engine.pool.checkedout()  # type: ignore[attr-defined]
        for shards in cluster._loops.values()  # noqa: SLF001 -- engines that are nobody's business
        for engine in shards.access.engines.values()
    )


def open_transactions(cluster: ShardCluster) -> int:
    """How many transactions are open in the databases of the shards, beside those that ask."""
    question = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND xact_start IS NOT NULL AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    found = 0
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            found += conn.execute(question).scalar_one()
    return found


def test_objects_are_found_written_and_merged(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_session(expire_on_commit=False) as session:
            mine = await session.get_one(Basket, (3, 1))
            mine.cents = 30
            session.add(Basket(household_id=3, id=2, cents=1))
            await session.commit()
        async with cluster.async_session() as session:
            found = (await session.scalars(WITH_LINES)).all()
            assert [(b.household_id, b.cents, len(b.lines)) for b in found if b.id == 1] == [
                (key, 30 if key == 3 else key, 1) for key in KEYS
            ]
            with pytest.raises(ScatterRefusedError):
                await session.scalar(select(func.count()).select_from(Basket))
            total = select(func.sum(Basket.cents)).execution_options(scatter=True)
            assert await session.scalar(total) == sum(KEYS) + 28
            await session.refresh(found[0])
            streamed = await session.stream_scalars(EVERYTHING)
            assert len([basket async for basket in streamed]) == len(KEYS) + 1

    run(cluster, work)


def test_what_only_postgres_can_merge_is_merged(cluster: ShardCluster) -> None:
    by_parity = (
        select(Basket.household_id % 2, func.count(Basket.cents.distinct()))
        .group_by(Basket.household_id % 2)
        .having(func.count() > 1)
        .order_by(Basket.household_id % 2)
    )

    async def work() -> list[Any]:
        async with cluster.async_session(scatter=True) as session:
            return [tuple(row) for row in await session.execute(by_parity)]

    assert run(cluster, work) == [(0, 5), (1, 4)]


def test_all_shards_are_asked_at_once(cluster: ShardCluster) -> None:
    async def read() -> int:
        async with cluster.async_session() as session:
            return len((await session.scalars(WITH_LINES)).all())

    async def work() -> int:
        holders = [engine.connect() for engine in cluster.engines.values()]
        for holder in holders:
            holder.execute(text("LOCK TABLE line"))
        reader = asyncio.create_task(read())
        for engine in cluster.engines.values():
            await asyncio.to_thread(until_waiting, engine, 1)
        for holder in holders:
            holder.close()
        return await reader

    assert run(cluster, work) == len(KEYS)


def test_atomic_sessions_write_to_all_shards_or_none(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_session(atomic=True) as session:
            for basket in (await session.scalars(EVERYTHING)).all():
                basket.cents = 1
            await session.commit()
            assert session.left_to_recovery == ()
        async with cluster.async_session(atomic=True) as session, session.begin():
            for basket in (await session.scalars(EVERYTHING)).all():
                basket.cents = 2
            await session.flush()
            await session.rollback()
        async with cluster.async_session() as session:
            for basket in (await session.scalars(EVERYTHING)).all():
                basket.cents = 3
            with pytest.raises(MultiShardWriteError):
                await session.commit()

    run(cluster, work)

    assert sum(sums(cluster).values()) == len(KEYS)
    assert (prepared(cluster), decisions(cluster)) == ([], [])


def test_core_connections_write_to_all_shards_or_none(cluster: ShardCluster) -> None:
    raised = update(Basket).values(cents=1)

    async def work(*, fails: bool) -> None:
        async with cluster.async_atomically() as atomic:
            for key in keys_on_each(cluster):
                conn = await atomic.connect(households, household_id=key)
                await conn.execute(raised.where(Basket.household_id == key))
            if fails:
                raise LookupError
        assert atomic.left_to_recovery == ()

    with pytest.raises(LookupError):
        run(cluster, lambda: work(fails=True))
    assert sum(sums(cluster).values()) == sum(KEYS)
    run(cluster, lambda: work(fails=False))
    expected = sum(KEYS) - sum(keys_on_each(cluster)) + SHARDS
    assert sum(sums(cluster).values()) == expected


def test_a_pinned_session_and_a_connection_work_on_one_key(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_on(households, household_id=4) as session:
            session.add(Basket(household_id=4, id=2, cents=6))
            await session.commit()
            assert (await session.scalars(select(Basket.cents).order_by(Basket.id))).all() == [4, 6]
        async with cluster.async_connect(households, household_id=4) as conn:
            mine = select(func.sum(Basket.cents)).where(Basket.household_id == 4)
            assert await conn.scalar(mine) == 10

    run(cluster, work)


def test_an_old_map_is_read_again(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(households)
    bucket, shard = shard_map.strategy.bucket(4), shard_map.shard_of(4)
    moved = text("UPDATE datapatterns.bucket SET state = :state WHERE bucket = :bucket")

    async def work() -> None:
        async with cluster.async_session() as session:
            with pytest.raises(StaleShardMapError):
                await session.get(Basket, (4, 1))
        with pytest.raises(StaleShardMapError):
            async with cluster.async_connect(households, household_id=4) as conn:
                await conn.execute(select(1))

    with cluster.engines[shard].begin() as conn:
        conn.execute(moved, {"state": "moved", "bucket": bucket})
    try:
        run(cluster, work)
    finally:
        with cluster.engines[shard].begin() as conn:
            conn.execute(moved, {"state": "owned", "bucket": bucket})


def test_a_shard_that_is_away_is_named(shard_urls: list[URL], cluster: ShardCluster) -> None:
    away = shard_urls[1].set(host="127.0.0.1", port=1, query={})
    urls = {**named(shard_urls[:SHARDS]), "s1": away}
    missing, there = keys_on_each(cluster)[1], keys_on_each(cluster)[0]

    with ShardCluster(control=shard_urls[0], shards=urls, groups=[households]) as partly:

        async def work() -> None:
            async with partly.async_session(scatter=True) as session:
                with pytest.raises(ShardUnavailableError, match="'s1'"):
                    await session.scalars(EVERYTHING)
                await session.rollback()
                with pytest.raises(ShardUnavailableError, match="'s1'"):
                    await session.get(Basket, (missing, 1))
                await session.rollback()
                assert await session.get(Basket, (there, 1)) is not None

        run(partly, work)


# Event loops -----------------------------------------------------------------------------------


def test_loops_of_several_threads_and_loops_that_ended_share_a_cluster(
    cluster: ShardCluster,
) -> None:
    together = threading.Barrier(2)
    counts: list[int] = []

    async def count() -> int:
        async with cluster.async_session() as session:
            await asyncio.to_thread(together.wait, 30)
            return len((await session.scalars(EVERYTHING)).all())

    async def counted() -> None:
        counts.append(await count())
        await cluster.aclose()

    threads = [threading.Thread(target=lambda: asyncio.run(counted())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counts == [len(KEYS)] * 2

    async def leaving_it_open() -> None:
        async with cluster.async_session() as session:
            assert await session.get(Basket, (1, 1)) is not None

    asyncio.run(leaving_it_open())
    run(cluster, leaving_it_open)
    assert cluster._loops == {}  # noqa: SLF001


# Cancellation ----------------------------------------------------------------------------------


async def reading(cluster: ShardCluster) -> None:
    async with cluster.async_session() as session:
        await session.scalars(WITH_LINES)


async def combining(cluster: ShardCluster) -> None:
    """What PostgreSQL has to finish, on a connection of its own."""
    prices = select(Basket.cents, func.count(Basket.id.distinct())).group_by(Basket.cents)
    async with cluster.async_session(scatter=True) as session:
        await session.execute(prices)


async def writing(cluster: ShardCluster) -> None:
    async with cluster.async_session(atomic=True) as session, session.begin():
        for key in keys_on_each(cluster):
            session.add(Basket(household_id=key, id=2, cents=0))


async def core_writing(cluster: ShardCluster) -> None:
    async with cluster.async_atomically() as atomic:
        for key in keys_on_each(cluster):
            conn = await atomic.connect(households, household_id=key)
            await conn.execute(insert(Basket).values(household_id=key, id=2))


@pytest.mark.parametrize("operation", [reading, combining, writing, core_writing])
def test_a_cancellation_leaves_nothing_open_and_all_or_nothing(
    cluster: ShardCluster, operation: Callable[[ShardCluster], Coroutine[Any, Any, None]]
) -> None:
    before, again = baskets(cluster), text("DELETE FROM basket WHERE id = 2")
    outcomes: set[tuple[bool, bool]] = set()

    async def all_struck() -> None:
        for strike in every_await():
            if strike.at % 2 and operation is not combining and not THOROUGH:
                strike.fired = True  # or it would be the last one
                continue
            error = await strike.cancel(operation(cluster))
            # What a session gives back when it is cancelled while it closes, it does in a task.
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others, return_exceptions=True)

            assert in_use(cluster) == 0
            assert (prepared(cluster), open_transactions(cluster)) == ([], 0)
            written = len(baskets(cluster)) - len(before)
            assert written in {0, SHARDS}
            outcomes.add((error is not None, written > 0))
            for engine in cluster.engines.values():
                with engine.begin() as conn:
                    conn.execute(again)

    run(cluster, all_struck)

    assert (True, False) in outcomes


@pytest.mark.parametrize(
    "failpoint", ["atomic.branch-prepared", "atomic.decision-written", "atomic.decided"]
)
@pytest.mark.parametrize("operation", [writing, core_writing])
def test_a_commit_that_has_begun_is_brought_to_its_end(
    cluster: ShardCluster,
    operation: Callable[[ShardCluster], Coroutine[Any, Any, None]],
    failpoint: str,
) -> None:
    async def cancelled() -> BaseException:
        task = asyncio.create_task(operation(cluster))
        with armed(failpoint, task.cancel), pytest.raises(asyncio.CancelledError) as caught:
            await task
        return caught.value

    before = len(baskets(cluster))
    error = run(cluster, cancelled)

    assert len(baskets(cluster)) == before + SHARDS
    assert (prepared(cluster), decisions(cluster)) == ([], [])
    assert find_unknown_outcome(error) is not None


@pytest.mark.parametrize("operation", [writing, core_writing])
def test_a_time_out_in_a_commit_is_a_time_out(
    cluster: ShardCluster, operation: Callable[[ShardCluster], Coroutine[Any, Any, None]]
) -> None:
    async def too_late() -> BaseException:
        limit = asyncio.timeout(None)

        def now() -> None:
            limit.reschedule(asyncio.get_running_loop().time())

        with armed("atomic.decided", now), pytest.raises(TimeoutError) as caught:
            async with limit:
                await operation(cluster)
        return caught.value

    before = len(baskets(cluster))
    error = run(cluster, too_late)

    assert len(baskets(cluster)) == before + SHARDS
    assert find_unknown_outcome(error) is not None


@asynccontextmanager
async def locked(cluster: ShardCluster) -> AsyncIterator[None]:
    def lock(stack: list[Connection]) -> None:
        for engine in cluster.engines.values():
            stack.append(engine.connect())
            stack[-1].execute(text("LOCK TABLE basket"))

    holders: list[Connection] = []
    await asyncio.to_thread(lock, holders)
    try:
        yield
    finally:
        for holder in holders:
            await asyncio.to_thread(holder.close)


def test_a_fan_out_that_is_cancelled_stops_all_servers(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(locked(cluster))
            reader = asyncio.create_task(reading(cluster))
            for engine in cluster.engines.values():
                await asyncio.to_thread(until_waiting, engine, 1)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            waiting = text(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            )
            for engine in cluster.engines.values():
                with engine.connect() as conn:
                    assert conn.scalar(waiting) == 0

    run(cluster, work)
    assert open_transactions(cluster) == 0
