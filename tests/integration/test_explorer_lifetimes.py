"""One schedule leaves nothing to the next, and an explorer leaves nothing at all."""

import asyncio
import contextvars
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from redis import RedisError
from sqlalchemy import URL, Engine, text
from sqlalchemy.pool import NullPool

from datapatterns.embedded import PostgresServer
from datapatterns.testing import Choice, Explorer, Gate, Outcome, Schedule, StuckError, wait_until
from tests.fixtures.explorers import SESSIONS

pytestmark = pytest.mark.usefixtures("reset")

AS_IT_COMES = Schedule()


def run(explorer: Explorer, **tasks: Callable[[], object]) -> Outcome:
    return explorer.run(lambda: tasks, AS_IT_COMES)


@pytest.mark.parametrize(
    ("leaves", "shows", "fresh"),
    [
        ("SET work_mem = '1MB'", "SHOW work_mem", "4MB"),
        (
            "SELECT set_config('app.who', 'eve', false)",
            "SELECT current_setting('app.who', true)",
            None,
        ),
        ("SELECT pg_advisory_lock(9)", "SELECT count(*) FROM pg_locks WHERE objid = 9", 0),
        (
            "CREATE TEMP TABLE scratch AS SELECT 1",
            "SELECT to_regclass('pg_temp.scratch')::text",
            None,
        ),
    ],
)
def test_what_a_session_remembers_does_not_leak_into_the_next_schedule(
    explorer: Explorer, leaves: str, shows: str, fresh: object
) -> None:
    engine = explorer.engine(pool_size=1, max_overflow=0)

    def leave() -> None:
        with engine.begin() as conn:
            conn.execute(text(leaves))

    def look() -> object:
        with engine.begin() as conn:
            return conn.scalar(text(shows))

    explorer.explore(lambda: {"task": leave}, invariant=lambda _: True)
    outcome = run(explorer, task=look)

    assert outcome.results == {"task": fresh}


def test_a_lock_that_a_function_leaves_in_the_session_does_not_leak(
    explorer: Explorer, plain: Engine
) -> None:
    with plain.begin() as conn:
        conn.execute(
            text(
                "CREATE OR REPLACE FUNCTION hide() RETURNS void LANGUAGE sql"
                " AS 'SELECT pg_advisory_lock(10)'"
            )
        )
    engine = explorer.engine()

    def task() -> None:
        with engine.begin() as conn:
            conn.execute(text("SELECT hide()"))

    run(explorer, task=task)

    with plain.connect() as conn:
        assert conn.scalar(text("SELECT count(*) FROM pg_locks WHERE objid = 10")) == 0


def test_connections_stay_open_from_one_schedule_to_the_next_where_nothing_was_left(
    explorer: Explorer,
) -> None:
    engine = explorer.engine()
    pids = set()

    def task() -> None:
        with engine.begin() as conn:
            pids.add(conn.scalar(text("SELECT pg_backend_pid()")))

    for _ in range(3):
        run(explorer, task=task)

    assert len(pids) == 1


def test_an_interrupt_ends_tasks_sessions_and_threads(explorer: Explorer, plain: Engine) -> None:
    engine, async_engine = explorer.engine(), explorer.async_engine()
    before = threading.active_count()

    def task() -> None:
        with engine.begin() as conn:
            conn.execute(text("UPDATE seats SET free = 5"))
            conn.execute(text("SELECT 1"))

    async def async_task() -> None:
        async with async_engine.begin() as conn:
            await conn.execute(text("UPDATE seats SET free = 6"))

    left = iter([Choice("sync"), Choice("other"), Choice("asynchronous")])

    def choose(_ready: object) -> Choice:
        if (choice := next(left, None)) is not None:
            return choice
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explorer.run(
            lambda: {"sync": task, "other": task, "asynchronous": async_task},
            choose,
        )

    assert threading.active_count() == before
    with plain.connect() as conn:
        assert not conn.execute(text("SELECT 1 FROM pg_locks WHERE NOT granted")).all()
        conn.execute(text("SET lock_timeout = '1s'"))
        conn.execute(text("UPDATE seats SET free = 0"))


def test_control_c_reaches_an_exploration_that_waits(plain: Engine) -> None:
    with Explorer(plain.url) as explorer, plain.begin() as stranger:
        stranger.execute(text("UPDATE seats SET free = 7"))

        def task() -> None:
            with explorer.connect() as conn:
                conn.execute("SELECT 1")
                os.kill(os.getpid(), signal.SIGINT)
                conn.execute("UPDATE seats SET free = 8")

        with pytest.raises(KeyboardInterrupt):
            run(explorer, task=task)

    assert "task task" not in {thread.name for thread in threading.enumerate()}


def test_an_explorer_works_within_a_running_event_loop(explorer: Explorer) -> None:
    client = explorer.async_redis()

    async def task() -> object:
        return await client.incr("x")

    async def test() -> None:
        seen: list[Outcome] = []
        searching = asyncio.create_task(
            asyncio.to_thread(
                explorer.explore,
                lambda: {"alice": task, "bob": task},
                invariant=seen.append,
            )
        )
        assert (await searching).exhausted
        assert run(explorer, task=task).results
        assert len(seen) == 2

    asyncio.run(test())


def test_branches_of_a_task_that_ask_at_once_are_refused(explorer: Explorer) -> None:
    client = explorer.async_redis()

    async def task() -> None:
        await asyncio.gather(client.get("x"), client.get("y"))

    outcome = run(explorer, task=task)

    assert "is at two gates at once" in str(outcome.errors["task"])
    assert "a task of its own" in str(outcome.errors["task"])


def test_a_coroutine_that_would_block_the_event_loop_is_refused(explorer: Explorer) -> None:
    client = explorer.redis()

    async def blocking() -> object:
        return client.get("x")

    async def in_a_thread() -> object:
        return await asyncio.to_thread(client.get, "x")

    refused, accepted = run(explorer, task=blocking), run(explorer, task=in_a_thread)

    assert "would block its event loop" in str(refused.errors["task"])
    assert not accepted.errors
    assert "redis GET x" in str(accepted.story)


def test_threads_that_a_task_starts_are_refused_unless_they_take_its_context_along(
    explorer: Explorer,
) -> None:
    client = explorer.redis()

    def careless() -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(client.get, "x").result()

    def careful() -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(contextvars.copy_context().run, client.get, "x").result()

    refused, accepted = run(explorer, task=careless), run(explorer, task=careful)

    assert "a thread that no schedule knows" in str(refused.errors["task"])
    assert not accepted.errors
    assert "redis GET x" in str(accepted.story)


def test_a_connection_of_another_explorer_is_refused(explorer: Explorer, plain: Engine) -> None:
    with Explorer(plain.url) as other:
        engine = other.engine()

        def task() -> None:
            with engine.connect() as conn:
                conn.execute(text("SELECT 1"))

        outcome = run(explorer, task=task)

    assert "a connection of another explorer" in str(outcome.errors["task"])


def test_a_task_may_open_connections_and_forget_them(explorer: Explorer) -> None:
    def task() -> None:
        kept.append(explorer.connect(autocommit=True))
        kept[-1].execute("SELECT 1")

    kept: list[psycopg.Connection[object]] = []
    for _ in range(3):
        run(explorer, task=task)

    assert all(each.closed for each in kept)


def test_engines_without_a_pool_are_gated(explorer: Explorer) -> None:
    engine = explorer.engine(poolclass=NullPool)

    def task() -> None:
        with engine.begin() as conn:
            conn.execute(text("UPDATE seats SET free = free + 1"))

    found = explorer.explore(
        lambda: {"alice": task, "bob": task},
        invariant=lambda _: True,
        crash_at=lambda _: True,
        max_preemptions=1,
    )

    assert found.exhausted


def test_settings_that_listeners_make_on_connecting_are_no_step_and_stay(
    explorer: Explorer,
) -> None:
    from sqlalchemy import event  # noqa: PLC0415 -- only here

    engine = explorer.engine(poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def connect(connection: psycopg.Connection[object], _record: object) -> None:
        connection.execute("SET application_name = 'shop'")
        connection.commit()

    def task() -> object:
        with engine.connect() as conn:
            return conn.scalar(text("SHOW application_name"))

    outcome = run(explorer, task=task)

    assert outcome.results == {"task": "shop"}
    assert str(outcome.story).count("SHOW application_name") == 1
    assert "SET application_name" not in str(outcome.story)


def test_one_server_with_two_addresses_is_one_server(postgres_server: PostgresServer) -> None:
    socket, port = postgres_server.url, postgres_server.url.query["port"]
    address = socket.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as conn:
        listens = conn.execute("SHOW listen_addresses").fetchone()
        conn.execute("CREATE TABLE seats (seat text, free int)")
        conn.execute("INSERT INTO seats VALUES ('a', 1)")
    hosts = str(socket.query["host"])
    others = [URL.create("postgresql", socket.username, database=socket.database)]
    many = {"host": f"/nowhere,{hosts}", "port": f"5432,{port}"}
    others = [each.update_query_dict(many) for each in others]
    if listens and listens[0]:
        others.append(socket.set(host="localhost", query={"port": str(port)}))
    for other in others:
        with Explorer(socket, stuck_after_seconds=1) as explorer:

            def update(url: URL, explorer: Explorer = explorer) -> None:
                with explorer.connect(url) as conn:
                    conn.execute("UPDATE seats SET free = free + 1")

            found = explorer.explore(
                lambda update=update, other=other: {  # type: ignore[misc] # bound now
                    "alice": lambda: update(socket),
                    "bob": lambda: update(other),
                },
                invariant=lambda _: True,
            )
            assert found.blocked_steps > 0


def test_an_ordinary_role_is_enough(plain: Engine) -> None:
    with plain.begin() as conn:
        conn.execute(text("DROP ROLE IF EXISTS dp_explorer"))
        conn.execute(text("CREATE ROLE dp_explorer LOGIN PASSWORD 'very-secret'"))
        conn.execute(text("GRANT ALL ON seats TO dp_explorer"))
    url = plain.url.set(username="dp_explorer", password="very-secret")
    try:
        with Explorer(url, stuck_after_seconds=0.3) as explorer:
            engine = explorer.engine()

            def task() -> None:
                with engine.begin() as conn:
                    conn.execute(text("UPDATE seats SET free = free + 1"))

            found = explorer.explore(
                lambda: {"alice": task, "bob": task}, invariant=lambda _: True, crash_at=_anywhere
            )
            with plain.begin() as stranger:
                stranger.execute(text("UPDATE seats SET free = 7"))
                with pytest.raises(StuckError, match="outside the schedule") as caught:
                    run(explorer, task=task)
    finally:
        with plain.begin() as conn:
            conn.execute(text("DROP OWNED BY dp_explorer"))
            conn.execute(text("DROP ROLE dp_explorer"))

    assert found.blocked_steps > 0
    assert "very-secret" not in repr(explorer) + str(caught.value) + repr(caught.value.story)


def _anywhere(_: Gate) -> bool:
    return True


def test_passwords_for_redis_are_not_told(explorer: Explorer) -> None:
    client: Any = explorer.redis()

    def task() -> None:
        with pytest.raises(RedisError):
            client.execute_command("AUTH", "very-secret")

    assert "very-secret" not in str(run(explorer, task=task).story)


def test_closing_twice_is_harmless_and_nothing_is_left_of_what_was_open(plain: Engine) -> None:
    explorer = Explorer(plain.url)
    conn = explorer.connect()
    conn.execute("SELECT 1")
    explorer.engine().connect()
    explorer.close()
    explorer.close()

    assert conn.closed
    plain.dispose()
    with plain.connect().execution_options(isolation_level="AUTOCOMMIT") as own:
        wait_until(lambda: not own.execute(SESSIONS).all())


def test_what_is_refused_where_nobody_looks_fails_the_schedule(explorer: Explorer) -> None:
    client, async_client = explorer.redis(), explorer.async_redis()

    def careless() -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(client.get, "x")

    async def gathering() -> None:
        await asyncio.gather(async_client.get("x"), async_client.get("y"), return_exceptions=True)

    for task, told in ((careless, "no schedule knows"), (gathering, "two gates at once")):
        with pytest.raises(RuntimeError, match=told):
            run(explorer, task=task)


def test_connections_of_your_own_making_are_refused(explorer: Explorer) -> None:
    for hand_in in (explorer.engine, explorer.async_engine):
        with pytest.raises(ValueError, match="creator would open connections that pass no gate"):
            hand_in(creator=psycopg.connect)
