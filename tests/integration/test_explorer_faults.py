"""A dead process does nothing any more, and a lost answer leaves the outcome open."""

from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from redis import Redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.testing import Explorer, Fault, Gate, InterleavingError, Outcome, Schedule

pytestmark = pytest.mark.usefixtures("reset")

Reset = Callable[[], None]
Free = Callable[[str], int]


def at(label: str) -> Callable[[Gate], bool]:
    return lambda gate: gate.label == label


def befallen(
    explorer: Explorer, label: str, fault: Fault, **tasks: Callable[[], object]
) -> Outcome:
    return explorer.run(lambda: tasks, Schedule(faults={0: fault}, fault_at=at(label)))


def take(explorer: Explorer, kind: str) -> Callable[[], object]:
    if kind == "async":
        async_engine = explorer.async_engine()

        async def async_task() -> None:
            async with async_engine.begin() as conn:
                await conn.execute(text("UPDATE seats SET free = free - 1 WHERE seat = 'a'"))

        return async_task
    engine = explorer.engine()

    def task() -> None:
        with engine.begin() as conn:
            conn.execute(text("UPDATE seats SET free = free - 1 WHERE seat = 'a'"))

    return task


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
def test_a_commit_whose_request_is_lost_did_not_happen_and_one_whose_reply_is_lost_did(
    explorer: Explorer, reset: Reset, free: Free, kind: str
) -> None:
    task = take(explorer, kind)

    for fault, left in ((Fault.REQUEST_LOST, 1), (Fault.REPLY_LOST, 0), (Fault.CRASH, 1)):
        reset()
        outcome = befallen(explorer, "COMMIT", fault, alice=task)

        assert free("a") == left, fault
        assert outcome.faults == {"alice": fault}
        assert bool(outcome.crashed) == (fault is Fault.CRASH)
        if fault is not Fault.CRASH:
            assert isinstance(outcome.errors["alice"], DBAPIError)
        assert f"COMMIT  <- {fault.upper()}" in str(outcome.story)


@KINDS
def test_the_locks_of_the_dead_are_gone_and_their_clean_up_does_nothing(
    explorer: Explorer, free: Free, redis_url: str, kind: str
) -> None:
    engine, client = explorer.engine(), explorer.redis()
    async_engine, async_client = explorer.async_engine(), explorer.async_redis()
    ran = []

    def dying() -> None:
        try:
            with engine.begin() as conn:
                conn.execute(text("UPDATE seats SET free = 5"))
                client.get("x")
        finally:
            ran.append("finally")
            client.set("cleaned", "1")

    async def dying_async() -> None:
        try:
            async with async_engine.begin() as conn:
                await conn.execute(text("UPDATE seats SET free = 5"))
                await async_client.get("x")
        finally:
            ran.append("finally")
            await async_client.set("cleaned", "1")

    outcome = befallen(
        explorer,
        "redis GET x",
        Fault.CRASH,
        dying=dying if kind == "sync" else dying_async,
        heir=take(explorer, kind),
    )

    assert outcome.crashed == {"dying"}
    assert not outcome.errors
    assert ran == ["finally"]
    assert free("a") == 0
    with Redis.from_url(redis_url) as plain:
        assert plain.get("cleaned") is None


def test_a_process_that_catches_everything_dies_all_the_same(explorer: Explorer) -> None:
    client = explorer.redis()

    def stubborn() -> None:
        for _ in range(3):
            try:
                client.incr("tries")
            except BaseException:  # noqa: BLE001, S112 -- what a careless loop does
                continue

    outcome = befallen(explorer, "redis INCRBY tries", Fault.CRASH, stubborn=stubborn)

    assert outcome.crashed == {"stubborn"}
    assert client.get("tries") is None


def test_a_copy_that_dies_leaves_no_row(explorer: Explorer, reset: Reset, plain: Engine) -> None:
    def task() -> None:
        with (
            explorer.connect() as conn,
            conn.cursor() as cursor,
            cursor.copy("COPY seats FROM STDIN") as copy,
        ):
            copy.write_row(("c", 1))

    for label, fault, rows in (
        ("end of COPY", Fault.CRASH, 2),
        ("COMMIT", Fault.REQUEST_LOST, 2),
        ("COMMIT", Fault.REPLY_LOST, 3),
    ):
        reset()
        befallen(explorer, label, fault, task=task)

        with plain.connect() as conn:
            assert conn.scalar(text("SELECT count(*) FROM seats")) == rows


@KINDS
def test_redis_py_tries_again_when_a_connection_breaks_and_counts_twice_if_only_the_reply_was_lost(
    explorer: Explorer, kind: str
) -> None:
    client = explorer.redis(decode_responses=True)
    async_client = explorer.async_redis(decode_responses=True)

    async def async_task() -> object:
        return await async_client.incr("x")

    task = partial(client.incr, "x") if kind == "sync" else async_task

    for fault, counted in ((Fault.REQUEST_LOST, 1), (Fault.REPLY_LOST, 2)):
        client.delete("x")
        outcome = befallen(explorer, "redis INCRBY x", fault, task=task)

        assert outcome.results == {"task": counted}


@KINDS
def test_a_transaction_of_redis_is_applied_as_a_whole_or_not_at_all(
    explorer: Explorer, kind: str
) -> None:
    client: Any = explorer.redis(decode_responses=True, retry=None)
    async_client: Any = explorer.async_redis(decode_responses=True, retry=None)

    def task() -> None:
        with client.pipeline() as pipeline:
            pipeline.set("x", "1").set("y", "1").execute()

    async def async_task() -> None:
        async with async_client.pipeline() as pipeline:
            await pipeline.set("x", "1").set("y", "1").execute()

    for fault, kept in (
        (Fault.REQUEST_LOST, [None, None]),
        (Fault.REPLY_LOST, ["1", "1"]),
        (Fault.CRASH, [None, None]),
    ):
        client.delete("x", "y")
        outcome = befallen(
            explorer,
            "redis MULTI SET SET EXEC",
            fault,
            task=task if kind == "sync" else async_task,
        )

        assert client.mget("x", "y") == kept
        assert outcome.faults == {"task": fault}


def test_a_pool_does_not_hand_the_connections_of_the_dead_to_the_living(explorer: Explorer) -> None:
    engine, client = explorer.engine(pool_size=1, max_overflow=0), explorer.redis()

    def dying() -> None:
        with engine.begin() as conn:
            conn.execute(text("SELECT 1"))
        client.get("x")

    def living() -> object:
        with engine.begin() as conn:
            return conn.scalar(text("SELECT 2"))

    outcome = befallen(explorer, "redis GET x", Fault.CRASH, dying=dying, living=living)

    assert outcome.results == {"living": 2}


def test_a_pool_opens_another_connection_where_the_dead_have_closed_theirs(
    explorer: Explorer,
) -> None:
    engine, client = explorer.engine(pool_size=1, max_overflow=0), explorer.redis()

    def dying() -> None:
        with engine.begin() as conn:
            conn.execute(text("SELECT 1"))
        client.get("x")

    def living() -> object:
        client.get("y")
        with engine.begin() as conn:
            return conn.scalar(text("SELECT 2"))

    outcome = befallen(explorer, "redis GET x", Fault.CRASH, dying=dying, living=living)

    assert outcome.results == {"living": 2}


def test_what_a_failed_task_leaves_open_is_closed_as_by_the_end_of_its_process(
    explorer: Explorer, free: Free
) -> None:
    engine = explorer.engine()

    def careless() -> None:
        conn = engine.connect()
        conn.execute(text("UPDATE seats SET free = 5"))
        kept.append(conn)

    def broken() -> None:
        conn = explorer.connect()
        kept.append(conn)
        conn.execute("UPDATE seats SET free = 6")
        conn.execute("SELECT 1 / 0")

    kept: list[object] = []
    outcome = explorer.run(
        lambda: {"careless": careless, "broken": broken, "heir": take(explorer, "sync")}, Schedule()
    )

    assert outcome.results.keys() == {"careless", "heir"}
    assert isinstance(outcome.errors["broken"], psycopg.errors.DivisionByZero)
    assert free("a") == 0


def test_crashes_at_every_gate_are_explored_and_the_exceptions_of_a_fault_are_allowed(
    explorer: Explorer, reset: Reset, free: Free
) -> None:
    task = take(explorer, "sync")

    def scenario() -> dict[str, Callable[[], object]]:
        reset()
        return {"alice": task}

    def invariant(outcome: Outcome) -> None:
        applied = 1 - free("a")
        assert applied == 1 or "alice" in outcome.faults

    found = explorer.explore(scenario, invariant=invariant, crash_at=lambda _: True)

    assert found.schedules == 1 + 2 * len(Fault)
    with pytest.raises(InterleavingError, match="never_fails is false") as caught:
        explorer.explore(
            scenario,
            invariant=never_fails,
            crash_at=at("COMMIT"),
            faults=[Fault.REPLY_LOST],
        )
    assert caught.value.outcome.token == "alice.alice!reply-lost"  # noqa: S105 -- of a schedule


def never_fails(outcome: Outcome) -> bool:
    return not outcome.faults
