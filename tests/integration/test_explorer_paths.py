"""Whatever a task sends to a server, passes a gate."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.testing import Explorer, InterleavingError, Outcome, Schedule
from tests.fixtures.explorers import steps

AS_IT_COMES = Schedule()
Reset = Callable[[], None]
Free = Callable[[str], int]


class Base(DeclarativeBase):
    pass


class Seat(Base):
    __tablename__ = "seats"
    seat: Mapped[str] = mapped_column(primary_key=True)
    free: Mapped[int]


def alone(explorer: Explorer, task: Callable[[], object]) -> list[str]:
    outcome = explorer.run(lambda: {"task": task}, AS_IT_COMES)
    assert not outcome.errors, outcome.story
    return steps(outcome)


def test_statements_transactions_and_savepoints_are_gated(explorer: Explorer) -> None:
    def task() -> None:
        with explorer.connect() as conn:
            conn.execute("SELECT 1")
            conn.commit()
            with conn.transaction():
                conn.execute(psycopg.sql.SQL("SELECT {}").format(2))
                with conn.transaction("inner"):
                    conn.execute(b"SELECT 3")
                with pytest.raises(ZeroDivisionError), conn.transaction("undone"):
                    raise ZeroDivisionError
            with conn.transaction(force_rollback=True):
                conn.execute("SELECT 4")
            conn.cursor().executemany("SELECT %s", [(5,), (6,)])

    assert alone(explorer, task) == [
        *("SELECT 1", "COMMIT", "BEGIN", "SELECT 2", "SAVEPOINT inner", "SELECT 3"),
        *("RELEASE inner", "SAVEPOINT undone", "ROLLBACK TO undone", "COMMIT"),
        *("BEGIN", "SELECT 4", "ROLLBACK", "SELECT %s", "pipeline exit", "COMMIT"),
    ]


@pytest.mark.usefixtures("reset")
def test_copy_both_ways_cursors_and_streams_are_gated(explorer: Explorer) -> None:
    def task() -> None:
        with explorer.connect() as conn, conn.cursor() as cursor:
            with cursor.copy("COPY seats TO STDOUT") as copy:
                assert len(list(copy.rows())) == 2
            with cursor.copy("COPY seats FROM STDIN") as copy:
                copy.write_row(("c", 3))
                copy.write_row(("d", 4))
            with conn.cursor("named") as named:
                named.execute("SELECT * FROM seats")
                assert named.fetchone()
                named.scroll(1)
            assert len(list(cursor.stream("SELECT 2"))) == 1

    assert alone(explorer, task) == [
        *("COPY seats TO STDOUT", "COPY seats FROM STDIN", "end of COPY"),
        *("SELECT * FROM seats", "FETCH", "MOVE", "CLOSE cursor", "SELECT 2", "COMMIT"),
    ]


def test_pipelines_are_gated(explorer: Explorer) -> None:
    def task() -> None:
        with explorer.connect(autocommit=True) as conn, conn.pipeline():
            conn.execute("SELECT 1")
            assert conn.execute("SELECT 2").fetchone() == (2,)

    passed = alone(explorer, task)

    assert [step for step in passed if step.startswith("SELECT")] == ["SELECT 1", "SELECT 2"]
    assert [step for step in passed if step.startswith("pipeline")]


def test_two_phase_commits_are_gated(explorer: Explorer, plain: Engine) -> None:
    with plain.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            prepared = []
        else:
            prepared = ["PREPARE TRANSACTION", "COMMIT PREPARED"]

    def task() -> None:
        with explorer.connect() as conn:
            conn.tpc_begin("one")
            conn.execute("SELECT 1")
            if prepared:
                conn.tpc_prepare()
            conn.tpc_commit()

    assert alone(explorer, task) == ["BEGIN", "SELECT 1", *(prepared or ["COMMIT"])]


@pytest.mark.usefixtures("reset")
def test_asynchronous_connections_pass_the_same_gates(explorer: Explorer) -> None:
    engine = explorer.async_engine()

    async def task() -> None:
        async with engine.connect() as conn:
            raw = (await conn.get_raw_connection()).driver_connection
            assert isinstance(raw, psycopg.AsyncConnection)
            async with raw.transaction(), raw.cursor() as cursor:
                await cursor.execute("SELECT 1")
                async with cursor.copy("COPY seats FROM STDIN") as copy:
                    await copy.write_row(("c", 3))
                async with raw.cursor("named") as named:
                    await named.execute("SELECT * FROM seats")
                    assert await named.fetchone()
            async with raw.pipeline():
                await raw.execute("SELECT 2")
            await conn.execute(text("SELECT 3"))

    passed = alone(explorer, task)

    assert passed[:7] == [
        *("BEGIN", "SELECT 1", "COPY seats FROM STDIN", "end of COPY"),
        *("SELECT * FROM seats", "FETCH", "CLOSE cursor"),
    ]
    assert passed[7] == "COMMIT"
    assert [step for step in passed[8:] if step.startswith("SELECT")] == ["SELECT 2", "SELECT 3"]


def test_redis_commands_pipelines_and_scripts_are_gated(explorer: Explorer) -> None:
    client: Any = explorer.redis(decode_responses=True)
    # A server keeps scripts, so one that it cannot know yet.
    script = client.register_script(f"return redis.call('INCR', KEYS[1]) -- {uuid4()}")

    def task() -> None:
        client.set("x", "1")
        with client.pipeline() as pipeline:
            pipeline.incr("x").get("x")
            assert pipeline.execute() == [2, "2"]
        with client.pipeline(transaction=False) as pipeline:
            pipeline.get("x").delete("y").execute()
        assert script(keys=["x"]) == 3

    assert alone(explorer, task) == [
        *("redis SET x", "redis MULTI INCRBY GET EXEC", "redis GET DEL"),
        *("redis EVALSHA x", "redis SCRIPT LOAD", "redis EVALSHA x"),
    ]


def test_asynchronous_redis_passes_the_same_gates(explorer: Explorer) -> None:
    client: Any = explorer.async_redis(decode_responses=True)

    async def task() -> None:
        await client.set("x", "1")
        async with client.pipeline() as pipeline:
            await pipeline.watch("x")
            pipeline.multi()
            pipeline.incr("x")
            assert await pipeline.execute() == [2]

    assert alone(explorer, task) == [
        *("redis SET x", "redis WATCH x", "redis MULTI INCRBY EXEC"),
    ]


def test_what_a_pool_asks_on_its_own_is_no_step(explorer: Explorer) -> None:
    engine = explorer.engine(pool_pre_ping=True, isolation_level="REPEATABLE READ")

    def task() -> None:
        for _ in range(2):
            with engine.begin() as conn:
                conn.execute(text("SELECT 1"))

    assert alone(explorer, task) == ["SELECT 1", "COMMIT"] * 2


def lost_update(explorer: Explorer, reset: Reset, free: Free, *tasks: Callable[[], object]) -> str:
    def scenario() -> dict[str, Callable[[], object]]:
        reset()
        return dict(zip(("alice", "bob"), tasks, strict=True))

    def invariant(_: Outcome) -> None:
        assert free("a") == -1

    with pytest.raises(InterleavingError) as caught:
        explorer.explore(scenario, invariant=invariant, max_preemptions=1)
    return caught.value.token


def test_the_lost_update_of_an_orm_is_found_sync_async_and_between(
    explorer: Explorer, reset: Reset, free: Free
) -> None:
    engine, async_engine = explorer.engine(), explorer.async_engine()

    def take(session: Session) -> None:
        session.scalars(select(Seat).where(Seat.seat == "a")).one().free -= 1
        session.commit()

    def sync() -> None:
        with Session(engine) as session:
            take(session)

    async def asynchronous() -> None:
        async with AsyncSession(async_engine) as session:
            (await session.scalars(select(Seat).where(Seat.seat == "a"))).one().free -= 1
            await session.commit()

    async def through_run_sync() -> None:
        async with AsyncSession(async_engine) as session:
            await session.run_sync(take)

    tokens = {
        lost_update(explorer, reset, free, first, second)
        for first in (sync, asynchronous, through_run_sync)
        for second in (sync, asynchronous, through_run_sync)
    }

    assert tokens == {"alice.bob*3.alice*2"}


def test_a_lambda_that_calls_a_coroutine_function_is_an_asynchronous_task(
    explorer: Explorer,
) -> None:
    client = explorer.async_redis()

    async def get(key: str) -> object:
        return await client.get(key)

    assert alone(explorer, lambda: get("x")) == ["redis GET x"]


def test_a_listener_waits_without_hindering_anybody(explorer: Explorer) -> None:
    def listen() -> list[str]:
        with explorer.connect(autocommit=True) as conn:
            conn.execute("LISTEN news")
            return [each.payload for each in conn.notifies(stop_after=1, timeout=10)]

    def tell() -> None:
        with explorer.connect(autocommit=True) as conn:
            conn.execute("SELECT pg_notify('news', 'tea')")

    outcome = explorer.run(lambda: {"listener": listen, "teller": tell}, AS_IT_COMES)

    assert outcome.results["listener"] == ["tea"]
    assert "waits in this process" in str(outcome.story)


def test_a_subscriber_waits_without_hindering_anybody(explorer: Explorer) -> None:
    client: Any = explorer.redis(decode_responses=True)

    def listen() -> object:
        with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            pubsub.subscribe("news")
            client.get("x")  # before the answer to SUBSCRIBE is read
            return next(each["data"] for each in pubsub.listen() if each["type"] == "message")

    outcome = explorer.run(
        lambda: {"listener": listen, "teller": lambda: client.publish("news", "tea")}, AS_IT_COMES
    )

    assert outcome.results["listener"] == "tea"


def test_an_asynchronous_scenario_and_invariant_may_use_the_explorers_loop(
    explorer: Explorer,
) -> None:
    client = explorer.async_redis(decode_responses=True)

    async def scenario() -> dict[str, Callable[[], object]]:
        await client.set("x", "1")
        return {"task": lambda: client.incr("x")}

    async def invariant(outcome: Outcome) -> bool:
        await asyncio.sleep(0)
        return outcome.results["task"] == 2 and await client.get("x") == "2"

    assert explorer.explore(scenario, invariant=invariant).exhausted
