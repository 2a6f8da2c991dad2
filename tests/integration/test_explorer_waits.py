"""Whoever waits is seen to wait, and a wait without end is named."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import psycopg
import pytest
from redis import Redis
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.embedded import PostgresServer
from datapatterns.testing import Explorer, Outcome, Schedule, StuckError
from tests.fixtures.explorers import steps

AS_IT_COMES = Schedule()
AFTER_ONE_STEP = Schedule({1: 1})

pytestmark = pytest.mark.usefixtures("reset")


def run(explorer: Explorer, schedule: Schedule, **tasks: Callable[[], object]) -> Outcome:
    return explorer.run(lambda: tasks, schedule)


def update(explorer: Explorer, *seats: str) -> Callable[[], None]:
    def task() -> None:
        with explorer.connect() as conn:
            for seat in seats:
                conn.execute("UPDATE seats SET free = free + 1 WHERE seat = %s", (seat,))

    return task


def test_a_row_lock_is_waited_for_and_the_story_says_whose(explorer: Explorer) -> None:
    both = {"alice": update(explorer, "a"), "bob": update(explorer, "a")}

    outcome = explorer.run(lambda: both, AFTER_ONE_STEP)

    assert outcome.story.blocked_steps == 1
    assert "... waits for alice" in str(outcome.story)
    assert [line.text for line in outcome.story.lines if line.task == "bob"][1:3] == [
        "waits for alice",
        "goes on",
    ]


def test_three_wait_in_a_queue_and_go_on_in_its_order(explorer: Explorer) -> None:
    # Not rows: when one is free and has changed, those who wait for it run for its new version.
    def task() -> None:
        with explorer.connect() as conn:
            conn.execute("SELECT pg_advisory_xact_lock(1)")

    schedule = Schedule({1: 1, 2: 1})

    stories = {
        str(explorer.run(lambda: dict.fromkeys(("alice", "bob", "carol"), task), schedule).story)
        for _ in range(5)
    }

    assert len(stories) == 1
    assert stories.pop().count("... waits for") == 2


def test_advisory_locks_and_safe_snapshots_are_waited_for(explorer: Explorer) -> None:
    def holder() -> None:
        with explorer.connect() as conn:
            conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            conn.execute("SELECT pg_advisory_xact_lock(7)")
            conn.execute("UPDATE seats SET free = 5")

    def waiter() -> None:
        with explorer.connect() as conn:
            conn.execute("SELECT pg_advisory_xact_lock(7)")

    def deferrable() -> None:
        with explorer.connect() as conn:
            conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE")
            conn.execute("SELECT * FROM seats")

    for other, schedule in ((waiter, Schedule({2: 1})), (deferrable, Schedule({3: 1}))):
        outcome = run(explorer, schedule, holder=holder, other=other)

        assert not outcome.errors
        assert "waits for holder" in str(outcome.story)


def test_a_deadlock_is_broken_by_the_server_and_the_last_to_wait_is_its_victim(
    explorer: Explorer,
) -> None:
    both = {"alice": update(explorer, "a", "b"), "bob": update(explorer, "b", "a")}

    outcomes = [explorer.run(lambda: both, Schedule({1: 1, 2: 1})) for _ in range(5)]
    found = explorer.explore(
        lambda: both,
        invariant=lambda _: True,
        max_preemptions=2,
        allowed_errors=(psycopg.errors.DeadlockDetected,),
    )

    assert {tuple(outcome.errors) for outcome in outcomes} == {("bob",)}
    assert "deadlock, broken by the server: DeadlockDetected: deadlock detected (40P01)" in [
        line.text for line in outcomes[0].story.lines
    ]
    assert found.deadlocks > 0


@pytest.mark.parametrize(
    ("setting", "state"), [("lock_timeout", "55P03"), ("statement_timeout", "57014")]
)
def test_timeouts_of_the_server_are_told_by_their_names(
    explorer: Explorer, setting: str, state: str
) -> None:
    given_up = threading.Event()

    def impatient() -> None:
        try:
            with explorer.connect(autocommit=True) as conn:
                conn.execute(f"SET {setting} = '50ms'".encode())
                conn.execute("SELECT pg_advisory_lock(8)")
        finally:
            given_up.set()

    def patient() -> None:
        with explorer.connect(autocommit=True) as conn:
            conn.execute("SELECT pg_advisory_lock(8)")
            given_up.wait(10)

    outcome = explorer.run(lambda: {"patient": patient, "impatient": impatient}, AS_IT_COMES)

    assert f"({state})" in str(outcome.story)
    assert "timeout" in str(outcome.story)


def test_threads_that_wait_for_each_other_in_this_process_are_no_hang(explorer: Explorer) -> None:
    lock, loaded = threading.Lock(), threading.Event()

    def guarded() -> None:
        with lock:
            update(explorer, "a")()

    def loader() -> None:
        update(explorer, "b")()
        loaded.set()

    def follower() -> None:
        assert loaded.wait(10)
        update(explorer, "b")()

    found = explorer.explore(
        lambda: {"alice": guarded, "bob": guarded}, invariant=lambda _: True, max_preemptions=2
    )

    assert found.exhausted
    loaded.clear()
    outcome = explorer.run(lambda: {"follower": follower, "loader": loader}, AS_IT_COMES)
    assert not outcome.errors
    assert "waits in this process" in str(outcome.story)


def test_coroutines_that_wait_for_each_other_are_no_hang(explorer: Explorer) -> None:
    engine = explorer.async_engine()

    def scenario() -> dict[str, Callable[[], object]]:
        lock = asyncio.Lock()

        async def guarded() -> None:
            async with lock, engine.begin() as conn:
                await conn.execute(text("UPDATE seats SET free = free + 1"))

        return {"alice": guarded, "bob": guarded, "carol": guarded}

    found = explorer.explore(scenario, invariant=lambda _: True, max_preemptions=2)

    assert found.exhausted


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_exhausted_pool_is_no_hang(explorer: Explorer, kind: str) -> None:
    engine = explorer.engine(pool_size=1, max_overflow=0)
    async_engine = explorer.async_engine(pool_size=1, max_overflow=0)

    def task() -> None:
        with engine.begin() as conn:
            conn.execute(text("UPDATE seats SET free = free + 1"))
            conn.execute(text("SELECT 1"))

    async def async_task() -> None:
        async with async_engine.begin() as conn:
            await conn.execute(text("UPDATE seats SET free = free + 1"))
            await conn.execute(text("SELECT 1"))

    chosen = task if kind == "sync" else async_task

    outcomes = [
        explorer.run(lambda: {"alice": chosen, "bob": chosen}, Schedule({1: 1})) for _ in range(3)
    ]

    assert {outcome.token for outcome in outcomes} == {"alice*3.bob*3"}


def test_blocking_commands_of_redis_are_waited_for(explorer: Explorer, redis_url: str) -> None:
    client, async_client = explorer.redis(), explorer.async_redis()

    async def async_consumer() -> object:
        return await async_client.blpop(["queue"], timeout=10)

    for consumer in (lambda: client.blpop(["queue"], timeout=10), async_consumer):
        producer = partial(client.rpush, "queue", "x")
        outcome = run(explorer, AS_IT_COMES, consumer=consumer, producer=producer)

        assert outcome.results["consumer"] == (b"queue", b"x")
        assert "... waits in Redis" in str(outcome.story)
    with Redis.from_url(redis_url) as plain:
        assert plain.llen("queue") == 0


def test_a_deadlock_of_a_task_with_itself_is_named(plain: Engine) -> None:
    with Explorer(plain.url, stuck_after_seconds=0.3) as explorer:

        def task() -> None:
            with explorer.connect() as first, explorer.connect() as second:
                first.execute("UPDATE seats SET free = 1")
                second.execute("UPDATE seats SET free = 2")

        with pytest.raises(StuckError, match="deadlock of a task with itself") as caught:
            explorer.run(lambda: {"task": task}, AS_IT_COMES)

    assert "waits for itself" in str(caught.value)
    assert str(caught.value).endswith("replay: --datapatterns-replay=task*2")


def test_a_deadlock_across_databases_of_two_servers_is_named(
    plain: Engine, postgres_server: PostgresServer
) -> None:
    url = postgres_server.url
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as conn:
        conn.execute("CREATE TABLE seats AS SELECT 'a' AS seat, 1 AS free")
    with Explorer(plain.url, stuck_after_seconds=0.5) as explorer:

        def transfer(source: URL, target: URL) -> None:
            with explorer.connect(source) as one, explorer.connect(target) as two:
                one.execute("UPDATE seats SET free = free - 1 WHERE seat = 'a'")
                two.execute("UPDATE seats SET free = free + 1 WHERE seat = 'a'")

        with pytest.raises(StuckError, match="deadlock across servers") as caught:
            explorer.run(
                lambda: {
                    "there": lambda: transfer(plain.url, url),
                    "back": lambda: transfer(url, plain.url),
                },
                Schedule({1: 1, 2: 1}),
            )

    assert "waits for back" in str(caught.value)
    assert "waits for there" in str(caught.value)


def test_a_deadlock_of_a_lock_here_and_one_in_postgresql_is_named(plain: Engine) -> None:
    lock = threading.Lock()
    with Explorer(plain.url, stuck_after_seconds=0.3) as explorer:

        def lock_first() -> None:
            with lock, explorer.connect() as conn:
                conn.execute("SELECT 1")
                conn.execute("UPDATE seats SET free = 1")

        def row_first() -> None:
            with explorer.connect() as conn:
                conn.execute("UPDATE seats SET free = 1")
                with lock:
                    conn.execute("SELECT 2")

        with pytest.raises(StuckError, match="locks in PostgreSQL and locks in this process"):
            explorer.run(
                lambda: {"lock_first": lock_first, "row_first": row_first}, Schedule({1: 1})
            )


def test_a_wake_up_that_never_comes_is_told_with_its_line(plain: Engine) -> None:
    forever = threading.Event()
    with Explorer(plain.url, stuck_after_seconds=0.2) as explorer:
        with pytest.raises(StuckError, match="all wait in this process") as caught:
            explorer.run(lambda: {"task": lambda: forever.wait(30)}, AS_IT_COMES)
        forever.set()

    assert "test_explorer_waits.py" in str(caught.value)


def test_a_stranger_that_holds_a_lock_is_told_with_its_name_and_query(plain: Engine) -> None:
    with Explorer(plain.url, stuck_after_seconds=0.3) as explorer, plain.connect() as stranger:
        stranger.execute(text("SET application_name = 'a forgotten test'"))
        stranger.execute(text("UPDATE seats SET free = 7"))

        with pytest.raises(StuckError, match="outside the schedule") as caught:
            explorer.run(lambda: {"task": update(explorer, "a")}, AS_IT_COMES)

    message = str(caught.value)
    assert "'a forgotten test'" in message
    assert "idle in transaction" in message
    assert "UPDATE seats SET free = 7" in message


def test_a_loop_without_end_is_a_livelock(plain: Engine) -> None:
    with Explorer(plain.url, max_steps=20) as explorer:

        def task() -> None:
            with explorer.connect(autocommit=True) as conn:
                while True:
                    conn.execute("SELECT 1")

        with pytest.raises(StuckError, match="livelock: no end after 20 steps") as caught:
            explorer.run(lambda: {"task": task}, AS_IT_COMES)

    assert str(caught.value).endswith("replay: --datapatterns-replay=task*20")


def test_a_connection_that_a_pool_hands_on_belongs_to_who_has_it(explorer: Explorer) -> None:
    engine = explorer.engine(pool_size=1, max_overflow=0)
    seen = []

    def brief() -> None:
        with engine.begin() as conn:
            seen.append(conn.scalar(text("SELECT pg_backend_pid()")))

    def long() -> None:
        brief()
        with engine.begin() as conn:
            conn.execute(text("UPDATE seats SET free = free + 1"))
            conn.execute(text("SELECT 1"))

    outcome = explorer.run(
        lambda: {"brief": brief, "long": long, "other": update(explorer, "a")},
        Schedule({5: 1}),
    )

    assert len(set(seen)) == 1
    assert not outcome.errors
    assert "waits for long" in str(outcome.story)


def test_a_deadlock_is_told_also_where_it_is_caught_and_tried_again(explorer: Explorer) -> None:
    engine = explorer.engine()

    def patient(*seats: str) -> Callable[[], None]:
        def once() -> None:
            with engine.begin() as conn:
                for seat in seats:
                    conn.execute(
                        text("UPDATE seats SET free = free + 1 WHERE seat = :s"), {"s": seat}
                    )

        def task() -> None:
            try:
                once()
            except DBAPIError:
                once()

        return task

    outcome: Outcome = explorer.run(
        lambda: {"alice": patient("a", "b"), "bob": patient("b", "a")}, Schedule({1: 1, 2: 1})
    )

    assert not outcome.errors
    assert "(40P01)" in str(outcome.story)
    assert steps(outcome, "bob").count("COMMIT") == 1
