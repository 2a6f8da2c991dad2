"""Reads on replicas: a session sees what it, or whoever gave it a token, has written."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, event, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from datapatterns.errors import (
    ShardMapCorruptError,
    ShardUnavailableError,
    StaleShardMapError,
    TokenError,
)
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.sharding import AllShards, Shard, ShardCluster, ShardSession, ShardToken
from datapatterns.sharding.atomic.ending import place_on
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.standbys import Standby, findings_about
from datapatterns.testing import wait_until
from tests.fixtures.cancelling import every_await
from tests.fixtures.shard_model import Basket, create_tables, households
from tests.fixtures.standbys import Pair, replicated

pytestmark = pytest.mark.postgres

EVERYTHING = select(Basket.household_id).execution_options(scatter=True)
WHERE = (
    select(func.pg_is_in_recovery()).select_from(Basket).where(Basket.household_id == 1).limit(1)
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with replicated() as pair:
        create_tables(pair.primary.url)
        with cluster_of(pair) as cluster:
            cluster.create_map()
            with cluster.session() as session, session.begin():
                session.add(Basket(household_id=1, id=1, cents=0))
        yield pair


@pytest.fixture
def cluster(pair: Pair) -> Iterator[ShardCluster]:
    with cluster_of(pair) as cluster:
        caught_up(pair)
        yield cluster
        run(pair.standby, "SELECT pg_wal_replay_resume()")


def cluster_of(pair: Pair) -> ShardCluster:
    servers = Shard(pair.primary.url, replicas=[pair.standby.url])
    return ShardCluster(
        control=pair.primary.url, shards={"s0": servers}, groups=[households], poll_seconds=0
    )


def run(engine: Engine, sql: str) -> object:
    with engine.connect() as conn:
        return conn.scalar(text(sql))


def flush(pair: Pair) -> None:
    """Send what is in the log: its end may be of others, who flush it when they commit."""
    with pair.primary.begin() as conn:
        conn.execute(text("SELECT pg_logical_emit_message(true, '', '')"))


def run_all(pair: Pair, sql: str) -> None:
    with pair.primary.begin() as conn:
        conn.execute(text(sql))


def caught_up(pair: Pair) -> None:
    flush(pair)
    here = run(pair.primary, "SELECT pg_current_wal_flush_lsn()")
    behind = f"SELECT pg_last_wal_replay_lsn() >= CAST('{here}' AS pg_lsn)"
    wait_until(lambda: bool(run(pair.standby, behind)))


def is_replica(session: ShardSession) -> bool:
    return bool(session.scalar(WHERE))


def write(cluster: ShardCluster, cents: int) -> ShardToken:
    with cluster.session() as session, session.begin():
        session.get_one(Basket, (1, 1)).cents = cents
    return session.token


def seen(session: ShardSession) -> int | None:
    return session.scalar(select(Basket.cents).where(Basket.household_id == 1))


def test_a_session_reads_on_replicas_if_it_asks_for_that(cluster: ShardCluster) -> None:
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        assert session.get_one(Basket, (1, 1)).id == 1
        assert session.scalars(EVERYTHING).all() == [1]
        session.commit()
    with cluster.session() as session:
        assert not is_replica(session)


def test_a_replica_that_is_behind_is_not_read_with_a_token(
    cluster: ShardCluster, pair: Pair
) -> None:
    before = write(cluster, 5)
    caught_up(pair)
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    token = write(cluster, 6)

    with cluster.session(replicas=True) as session:
        assert (is_replica(session), seen(session)) == (True, 5)
    with cluster.session(replicas=True, after=before) as session:
        assert (is_replica(session), seen(session)) == (True, 5)
    with cluster.session(replicas=True, after=str(token)) as session:
        assert (is_replica(session), seen(session)) == (False, 6)
        assert session.scalars(EVERYTHING).all() == [1]
    with cluster.session(replicas=True, after=token.with_all_of(before)) as session:
        assert not is_replica(session)


def test_a_reader_waits_for_a_replica_that_comes_in_time(cluster: ShardCluster, pair: Pair) -> None:
    token = write(cluster, 7)
    flush(pair)

    with cluster.session(replicas=True, after=token, wait_seconds=30) as session:
        assert (is_replica(session), seen(session)) == (True, 7)


def test_a_session_sees_what_it_wrote_before(cluster: ShardCluster, pair: Pair) -> None:
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        session.rollback()
        session.get_one(Basket, (1, 1)).cents = 8
        session.commit()

        assert (is_replica(session), seen(session)) == (False, 8)


def test_a_transaction_that_has_written_reads_the_primary(
    cluster: ShardCluster, pair: Pair
) -> None:
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        session.execute(update(Basket).where(Basket.household_id == 1).values(cents=9))
        assert (is_replica(session), seen(session)) == (False, 9)
        session.rollback()
        assert is_replica(session)
        session.get_one(Basket, (1, 1)).cents = 10  # not flushed yet
        assert seen(session) == 10
        session.rollback()


def test_a_bucket_that_has_just_arrived_is_not_read_where_it_looks_empty(
    cluster: ShardCluster, pair: Pair
) -> None:
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with pair.primary.begin() as conn:  # as a move does: the rows, the shard, and then the map
        conn.execute(insert(Basket).values(household_id=2, id=1))
        conn.execute(text("UPDATE datapatterns.shard_group SET epoch = epoch + 1"))
    try:
        arrived = select(Basket.id).where(Basket.household_id == 2)
        with cluster.session(replicas=True) as session:
            assert session.scalars(arrived).all() == [1]
            assert not is_replica(session)
        run(pair.standby, "SELECT pg_wal_replay_resume()")
        caught_up(pair)
        with cluster.session(replicas=True) as session:
            assert is_replica(session)
            assert session.scalars(arrived).all() == [1]
    finally:
        with pair.primary.begin() as conn:
            conn.execute(text("DELETE FROM basket WHERE household_id = 2"))


def test_a_replica_does_not_answer_for_what_it_does_not_know_to_be_owned(
    cluster: ShardCluster, pair: Pair
) -> None:
    """Its own snapshot is asked; the primary knows better."""
    own = "UPDATE datapatterns.bucket SET state = '{}'"
    with pair.primary.begin() as conn:
        conn.execute(text(own.format("incoming")))
    caught_up(pair)
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with pair.primary.begin() as conn:
        conn.execute(text(own.format("owned")))

    with cluster.session(replicas=True) as session:
        assert not is_replica(session)
        assert seen(session) is not None


def test_a_replica_that_is_away_is_done_without(pair: Pair) -> None:
    away = Shard(pair.primary.url, replicas=["postgresql://[::1]:1/x", pair.standby.url])
    caught_up(pair)
    with ShardCluster(
        control=pair.primary.url, shards={"s0": away}, groups=[households]
    ) as cluster:
        for _ in range(3):
            with cluster.session(replicas=True) as session:
                assert is_replica(session)


@pytest.mark.parametrize("changed", [False, True])
def test_a_replica_answers_while_its_primary_is_away_unless_the_map_has_changed(
    pair: Pair, *, changed: bool
) -> None:
    """What may have arrived on the shard since, only the primary could tell."""
    with pair.primary.begin() as conn:
        change = text("UPDATE datapatterns.shard_group SET epoch = :epoch")
        conn.execute(change, {"epoch": 2 if changed else 1})
    caught_up(pair)
    widowed = Shard("postgresql://[::1]:1/x", replicas=[pair.standby.url])
    with (
        ShardCluster(control=pair.primary.url, shards={"s0": widowed}, groups=[households]) as shop,
        shop.session(replicas=True) as session,
        pytest.raises(ShardUnavailableError) if changed else nullcontext(),
    ):
        assert is_replica(session)
        assert session.scalars(EVERYTHING).all() == [1]


def test_a_primary_is_no_replica(pair: Pair) -> None:
    twice = Shard(pair.primary.url, replicas=[pair.primary.url])
    with (
        ShardCluster(control=pair.primary.url, shards={"s0": twice}, groups=[households]) as shop,
        shop.session(replicas=True) as session,
    ):
        assert not is_replica(session)


def test_a_block_over_several_shards_gives_a_token(cluster: ShardCluster, pair: Pair) -> None:
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with cluster.atomically() as work:
        conn = work.connect(households, household_id=1)
        conn.execute(update(Basket).where(Basket.household_id == 1).values(cents=11))
        assert work.token == ShardToken()

    with cluster.session(replicas=True, after=work.token) as session:
        assert (is_replica(session), seen(session)) == (False, 11)
    run(pair.standby, "SELECT pg_wal_replay_resume()")
    caught_up(pair)
    with cluster.session(replicas=True, after=work.token) as session:
        assert (is_replica(session), seen(session)) == (True, 11)


def test_so_does_a_block_on_asyncio(cluster: ShardCluster, pair: Pair) -> None:
    async def write() -> ShardToken:
        async with cluster_of(pair) as other:
            async with other.async_atomically() as work:
                conn = await work.connect(households, household_id=1)
                await conn.execute(update(Basket).where(Basket.household_id == 1).values(cents=12))
            return work.token

    run(pair.standby, "SELECT pg_wal_replay_pause()")
    token = asyncio.run(write())
    with cluster.session(replicas=True, after=token) as session:
        assert (is_replica(session), seen(session)) == (False, 12)


def test_a_pinned_session_gives_a_token(cluster: ShardCluster, pair: Pair) -> None:
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    with cluster.on(households, household_id=1) as pinned:
        pinned.get_one(Basket, (1, 1)).cents = 13
        with pinned.begin_nested():
            pinned.get_one(Basket, (1, 1)).cents = 14
        assert pinned.token == ShardToken()  # a savepoint is no commit
        pinned.commit()
        first = pinned.token
        pinned.rollback()
        pinned.get_one(Basket, (1, 1)).cents = 15
        pinned.rollback()
        assert pinned.token == first

    with cluster.session(replicas=True, after=first) as session:
        assert (is_replica(session), seen(session)) == (False, 14)
    run(pair.standby, "SELECT pg_wal_replay_resume()")
    caught_up(pair)
    with cluster.session(replicas=True, after=first) as session:
        assert (is_replica(session), seen(session)) == (True, 14)


def test_where_there_is_no_replica_nobody_pays_for_a_token(pair: Pair) -> None:
    with (
        ShardCluster(
            control=pair.primary.url, shards={"s0": pair.primary.url}, groups=[households]
        ) as plain,
        plain.on(households, household_id=1) as pinned,
    ):
        pinned.get_one(Basket, (1, 1)).cents = 16
        pinned.commit()
        assert pinned.token == ShardToken()


def test_a_replica_that_breaks_is_lost_without_harm(cluster: ShardCluster, pair: Pair) -> None:
    available = {"shard": AllShards(partial="allow")}
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        run(
            pair.standby,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        assert session.execute(select(Basket.id), execution_options=available).all() == []
        assert session.missing_shards == ("s0",)
        with pytest.raises(ShardUnavailableError):
            session.execute(update(Basket).where(Basket.household_id == 1).values(cents=1))
        session.rollback()
        assert session.execute(select(Basket.id), execution_options=available).all() == [(1,)]


def test_what_is_wrong_with_a_replica_is_found(cluster: ShardCluster, pair: Pair) -> None:
    assert [each for each in cluster.check() if "replica" in each.problem] == []
    run(pair.standby, "SELECT pg_wal_replay_pause()")
    wrong: list[str | URL] = [pair.standby.url, pair.primary.url, "postgresql://[::1]:1/x"]
    servers = Shard(pair.primary.url, replicas=wrong)
    with ShardCluster(
        control=pair.primary.url, shards={"s0": servers}, groups=[households]
    ) as shop:
        found = [str(each) for each in shop.check() if "replica" in each.problem]

    assert len(found) == 3
    assert "replica 1 was told not to replay" in found[0]
    assert "replica 2 is no standby" in found[1]
    assert "replica 3 could not be looked at" in found[2]


def test_a_replica_that_sorts_otherwise_than_its_indexes_is_found() -> None:
    odd = Standby(is_one=True, paused=False, collation_stored="2.28", collation_actual="2.36")

    [finding] = findings_about("s0", 1, odd)

    assert "by version 2.36" in finding.problem
    assert [*findings_about("s0", 1, replace(odd, collation_actual="2.28"))] == []


@pytest.mark.parametrize(
    "text", ["x", "s0:1", "s0:0/1;x", "s0:0/1,;1:1", "S0:0/1;1:1", "a" * 9_000]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenError):
        ShardToken.parse(text)


@pytest.mark.parametrize("moves", [False, True])
def test_what_a_replica_has_shown_is_claimed_on_the_primary_before_it_is_locked(
    cluster: ShardCluster, pair: Pair, *, moves: bool
) -> None:
    """The replica knows nothing yet of a bucket that has left."""
    own = "UPDATE datapatterns.bucket SET state = '{}'"
    one = select(Basket).where(Basket.household_id == 1)
    with cluster.session(replicas=True) as session:
        basket = session.get_one(Basket, (1, 1))
        lock = partial(session.scalars, one.with_for_update())
        attempt = partial(session.move_row, basket, household_id=4) if moves else lock
        run(pair.standby, "SELECT pg_wal_replay_pause()")
        run_all(pair, own.format("incoming"))
        try:
            with pytest.raises(StaleShardMapError):
                attempt()
            session.rollback()
        finally:
            run_all(pair, own.format("owned"))
        assert session.scalars(one.with_for_update()).one().id == 1
        assert not is_replica(session)


def test_a_map_that_is_wrong_since_makes_no_failure_of_a_commit(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong() -> list[ShardMap]:
        raise ShardMapCorruptError("household", "it has a hole")

    def break_map(_conn: Connection) -> None:
        monkeypatch.setattr(cluster.router, "maps", wrong)

    with cluster.session() as session:
        session.get_one(Basket, (1, 1)).cents = 21
        event.listen(cluster.engines["s0"], "commit", break_map, once=True)
        session.commit()
    monkeypatch.undo()

    assert session.token.places.keys() == {"s0"}
    with cluster.session(after=session.token) as again:
        assert seen(again) == 21


def test_a_savepoint_may_write_after_a_read_on_a_replica(cluster: ShardCluster) -> None:
    with cluster.session(replicas=True) as session:
        assert is_replica(session)
        with session.begin_nested():
            assert not is_replica(session)
            session.execute(update(Basket).where(Basket.household_id == 1).values(cents=22))
        assert (is_replica(session), seen(session)) == (False, 22)
        session.commit()
        assert seen(session) == 22


async def in_a_session(cluster: ShardCluster, told: list[bool]) -> None:
    async with cluster.async_session() as session:
        (await session.get_one(Basket, (1, 1))).cents = 23
        await session.commit()
        told.append(True)


async def in_a_pinned_session(cluster: ShardCluster, told: list[bool]) -> None:
    async with cluster.async_on(households, household_id=1) as session:
        (await session.get_one(Basket, (1, 1))).cents = 23
        await session.commit()
        told.append(True)


async def in_a_block(cluster: ShardCluster, told: list[bool]) -> None:
    async with cluster.async_atomically() as work:
        conn = await work.connect(households, household_id=1)
        await conn.execute(update(Basket).where(Basket.household_id == 1).values(cents=23))
    told.append(True)


@pytest.mark.parametrize("operation", [in_a_session, in_a_pinned_session, in_a_block])
def test_who_is_cancelled_while_a_token_is_taken_leaves_no_autocommit_behind(
    pair: Pair, operation: Callable[[ShardCluster, list[bool]], Coroutine[Any, Any, None]]
) -> None:
    """Whoever has the connection next would commit each statement by itself."""
    took_place = 0

    async def struck(cluster: ShardCluster) -> None:
        nonlocal took_place
        async with cluster:
            await operation(cluster, [])
            engine = cluster._of_this_loop().access.engines["s0"]  # noqa: SLF001 -- there is no public way
            for strike in every_await():
                await operation(cluster, [])  # else who connects anew awaits more than the next
                run_all(pair, "UPDATE basket SET cents = 0 WHERE household_id = 1")
                told: list[bool] = []
                error = await strike.cancel(operation(cluster, told))
                assert error is None or type(error) is asyncio.CancelledError  # or no time-out
                others = asyncio.all_tasks() - {asyncio.current_task()}
                await asyncio.gather(*others, return_exceptions=True)
                assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a queue
                written = run(pair.primary, "SELECT max(cents) FROM basket") == 23
                if written and error is not None and not told:
                    took_place += 1
                    assert find_unknown_outcome(error) is not None
                async with AsyncEngine(engine).connect() as conn:
                    assert not (await autocommits(conn))

    asyncio.run(struck(cluster_of(pair)))
    assert took_place


async def autocommits(conn: AsyncConnection) -> bool:
    raw = await conn.get_raw_connection()
    driver: Any = raw.driver_connection
    return bool(driver.autocommit)


def test_an_interrupted_look_at_the_log_leaves_no_autocommit_behind(pair: Pair) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pair.primary.connect() as conn:
        driver: Any = conn.connection.dbapi_connection
        driver.cursor = interrupt
        with pytest.raises(KeyboardInterrupt):
            place_on(conn)
    with pair.primary.connect() as conn:
        again: Any = conn.connection.dbapi_connection
        assert not again.autocommit
