"""Snapshots are written after the COMMIT, beside the command, and never in its way."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.orm import Session

from datapatterns.event_sourcing import (
    AsyncSnapshotWriter,
    CommandPolicy,
    Decider,
    EventStore,
    SnapshotWriter,
    every,
)
from datapatterns.event_sourcing.appending.after_commit import after_commit
from datapatterns.event_sourcing.states import snapshot_writer
from datapatterns.event_sourcing.states.sourced import Sourced
from tests.fixtures.tills import AsDataclass, Scanned, Till, decide, evolve, types

store = EventStore(types=types)
TILL = Decider("till", AsDataclass(), decide, evolve, snapshot=every(2))
TWO = [Scanned(1, 1), Scanned(2, 2)]
SECONDS = 30.0


def kept(engine: Engine) -> list[tuple[str, int]]:
    with engine.begin() as conn:
        rows = conn.execute(
            text(
                "SELECT s.key, n.version FROM datapatterns.snapshot AS n"
                " JOIN datapatterns.stream AS s ON s.id = n.stream_id ORDER BY 1, 2"
            )
        )
        return [(key, version) for key, version in rows]


@pytest.fixture
def writer(engine: Engine) -> Iterator[SnapshotWriter]:
    with SnapshotWriter(store, engine, capacity=2) as writer:
        yield writer


class Listener:
    """Notes what it is told of."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def offer(self, sourced: Sourced, /) -> bool:
        self.told.append(sourced.version)
        return True


def test_a_command_that_makes_a_snapshot_due_gets_it_written(
    engine: Engine, writer: SnapshotWriter
) -> None:
    policy = CommandPolicy(snapshots=writer)
    for _ in range(3):
        store.handle(engine, TILL, "7", TWO, policy=policy)
        assert writer.flush(timeout_seconds=SECONDS)
    store.handle(engine, TILL, "7", [Scanned(1, 1)], policy=policy)
    store.handle(engine, TILL, "8", [Scanned(1, 1)], policy=policy)

    assert writer.flush(timeout_seconds=SECONDS)
    assert kept(engine) == [("7", 2), ("7", 4), ("7", 6)]
    assert (writer.written, writer.dropped) == (3, 0)
    with engine.begin() as conn:
        assert store.load(conn, TILL, "7")._history.snapshot_version == 6  # noqa: SLF001


def test_nothing_is_written_in_the_command_itself(engine: Engine, writer: SnapshotWriter) -> None:
    threads: set[int] = set()

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "INTO datapatterns.snapshot" in statement:
            threads.add(threading.get_ident())

    event.listen(engine, "before_cursor_execute", note)
    store.handle(engine, TILL, "7", TWO, policy=CommandPolicy(snapshots=writer))
    assert writer.flush(timeout_seconds=SECONDS)

    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_in_the_callers_transaction_it_is_told_after_the_commit(engine: Engine) -> None:
    """Seen from another session: what it is told of is there already."""
    seen: list[tuple[int, int]] = []

    class Looking(Listener):
        def offer(self, sourced: Sourced, /) -> bool:
            with engine.begin() as conn:
                seen.append((sourced.version, store.load(conn, TILL, "7").version))
            return True

    for _ in range(2):
        with engine.begin() as conn, store.for_update(conn, TILL, "7", snapshots=Looking()) as till:
            till.decide(TWO)

    assert seen == [(2, 2), (4, 4)]


def test_told_before_the_commit_it_would_look_in_vain(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: by SQLAlchemy's own event, which comes before the COMMIT."""

    def too_early(conn: Connection, action: Any) -> None:  # noqa: ANN401 -- any function
        event.listen(conn, "commit", lambda _: action(), once=True)

    monkeypatch.setattr("datapatterns.event_sourcing.commands.commanding.after_commit", too_early)

    with pytest.raises(AssertionError, match=r"\(2, 0\)"):
        test_in_the_callers_transaction_it_is_told_after_the_commit(engine)


def test_a_rollback_tells_nobody(engine: Engine) -> None:
    listener = Listener()
    with engine.connect() as conn:
        with store.for_update(conn, TILL, "7", snapshots=listener) as till:
            till.decide(TWO)
        conn.rollback()
        with store.for_update(conn, TILL, "7", snapshots=listener) as till:
            till.decide(TWO)
    with (
        suppress(ValueError),
        engine.begin() as conn,
        store.for_update(conn, TILL, "7", snapshots=listener) as till,
    ):
        till.decide(TWO)
        raise ValueError

    with engine.begin() as conn:  # on the same connection
        store.load(conn, TILL, "7")

    assert listener.told == []


def test_on_a_connection_that_is_kept_it_is_told_when_the_next_transaction_begins(
    engine: Engine,
) -> None:
    listener = Listener()
    with engine.connect() as conn:
        for expected in ([], [2], [2]):
            with store.for_update(conn, TILL, "7", snapshots=listener) as till:
                assert listener.told == expected
                till.decide(TWO)
            if expected == [2]:
                conn.rollback()
                break
            conn.commit()
        assert listener.told == [2]
    assert listener.told == [2]


def test_two_phases_and_sessions_tell_as_well(engine: Engine) -> None:
    listener = Listener()
    with Session(engine) as session:
        with store.for_update(session.connection(), TILL, "7", snapshots=listener) as till:
            till.decide(TWO)
        session.commit()
    assert listener.told == [2]
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server has no prepared transactions")
        conn.rollback()
        in_two_phases = conn.begin_twophase()
        with store.for_update(conn, TILL, "7", snapshots=listener) as till:
            till.decide(TWO)
        in_two_phases.prepare()
        in_two_phases.commit()
    assert listener.told == [2, 4]


def test_each_connection_listens_once_and_tells_of_each_transaction_once(engine: Engine) -> None:
    one = create_engine(engine.url, pool_size=1, max_overflow=0)
    told: list[int] = []
    for number in range(5):
        with one.begin() as conn:
            for _ in range(2):
                after_commit(conn, partial(told.append, number))
    with one.begin() as conn:
        conn.execute(text("SELECT 1"))
    one.dispose()

    assert told == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_what_was_rolled_back_by_a_savepoint_is_not_in_the_snapshot(
    engine: Engine, writer: SnapshotWriter
) -> None:
    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        with store.for_update(conn, TILL, "7", snapshots=writer) as till:
            till.decide(TWO)
        savepoint.rollback()
        with store.for_update(conn, TILL, "7", snapshots=writer) as till:
            till.decide([Scanned(9, 9), Scanned(9, 9)])

    assert writer.flush(timeout_seconds=SECONDS)
    with engine.begin() as conn:
        assert store.load(conn, TILL, "7").state.lines == {9: 2}
    assert kept(engine) == [("7", 2)]


class Held:
    """Holds the writer's loads up, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.keys: list[str] = []
        write = snapshot_writer.write_snapshot

        def held(*args: Any, **kwargs: Any) -> bool:  # noqa: ANN401 -- as they are
            self.reached.set()
            assert self.go_on.wait(SECONDS)
            self.keys.append(args[-1].key)
            return write(*args, **kwargs)

        monkeypatch.setattr(snapshot_writer, "write_snapshot", held)


def test_a_full_backlog_drops_and_each_stream_waits_once(
    engine: Engine, writer: SnapshotWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    policy = CommandPolicy(snapshots=writer)
    store.handle(engine, TILL, "first", TWO, policy=policy)
    assert held.reached.wait(SECONDS)  # taken out, so it counts no more
    for key in ("a", "b", "a", "c", "b", "d"):
        store.handle(engine, TILL, key, TWO, policy=policy)
    assert not writer.flush(timeout_seconds=0)
    held.go_on.set()

    assert writer.flush(timeout_seconds=SECONDS)
    assert writer.dropped == 2
    assert held.keys == ["first", "a", "b"], "who waits longest is next"
    assert kept(engine) == [("a", 4), ("b", 4), ("first", 2)]


def test_closing_drops_what_waits_and_takes_nothing_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    writer = SnapshotWriter(store, engine)
    policy = CommandPolicy(snapshots=writer)
    for key in ("first", "second"):
        store.handle(engine, TILL, key, TWO, policy=policy)
        assert held.reached.wait(SECONDS)
    held.go_on.set()
    writer.close(timeout_seconds=SECONDS)
    store.handle(engine, TILL, "third", TWO, policy=policy)

    assert kept(engine) == [("first", 2)]
    assert writer.flush(timeout_seconds=0), "nothing is left that would be waited for"
    writer.close()


def test_what_fails_is_logged_and_the_next_is_written(
    engine: Engine, writer: SnapshotWriter, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(state: int, e: Scanned) -> Any:  # noqa: ANN401 -- not what it says
        return f"secret {state} {e}"

    bad: Any = Decider("bad", 0, decide, wrong, state=int, snapshot=every(2))
    policy = CommandPolicy(snapshots=writer)
    with caplog.at_level(
        logging.WARNING, logger="datapatterns.event_sourcing.states.snapshot_writer"
    ):
        handled = store.handle(engine, bad, "1", TWO, policy=policy)
        assert writer.flush(timeout_seconds=SECONDS)
        store.handle(engine, TILL, "7", TWO, policy=policy)
        assert writer.flush(timeout_seconds=SECONDS)

    [logged] = caplog.records
    assert "bad-1" in vars(logged)["stream"]
    assert "differs from its type" in vars(logged)["reason"]
    assert "secret" not in str(vars(logged))
    assert handled.sourced.version == 2
    assert kept(engine) == [("7", 2)]


def test_a_server_that_is_away_costs_the_command_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    away = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with SnapshotWriter(store, away) as writer:
        store.handle(engine, TILL, "7", TWO, policy=CommandPolicy(snapshots=writer))
        assert writer.flush(timeout_seconds=SECONDS)

    assert [vars(record)["reason"] for record in caplog.records] == ["OperationalError"]
    assert kept(engine) == []


def test_an_aggregate_without_a_policy_is_never_due(engine: Engine, writer: SnapshotWriter) -> None:
    plain = Decider("till", AsDataclass(), decide, evolve)

    handled = store.handle(engine, plain, "7", TWO, policy=CommandPolicy(snapshots=writer))

    assert not writer.offer(handled.sourced)
    assert not writer.offer(Till("8"))


def test_the_async_writer_does_the_same_in_a_task(engine: Engine) -> None:
    async def run() -> tuple[int, int]:
        far = create_async_engine(engine.url)
        async with AsyncSnapshotWriter(store, far, capacity=1) as writer:
            policy = CommandPolicy(snapshots=writer)
            await store.handle_async(far, TILL, "7", TWO, policy=policy)
            assert await writer.flush(timeout_seconds=SECONDS)
            async with far.begin() as conn:
                await update(conn, writer, "8")
            async with far.connect() as conn:
                await update(conn, writer, "9")
                await conn.rollback()
            assert await writer.flush(timeout_seconds=SECONDS)
        assert not writer.offer(Till("7"))
        await far.dispose()
        return writer.written, writer.dropped

    async def update(conn: AsyncConnection, writer: AsyncSnapshotWriter, key: str) -> None:
        async with store.for_update_async(conn, TILL, key, snapshots=writer) as till:
            till.decide(TWO)

    assert asyncio.run(run()) == (2, 0)
    assert kept(engine) == [("7", 2), ("8", 2)]


def test_a_writer_keeps_as_many_snapshots_as_it_was_told(engine: Engine) -> None:
    async def beside() -> None:
        far = create_async_engine(engine.url)
        async with AsyncSnapshotWriter(store, far, keep=1) as writer:
            for _ in range(2):
                policy = CommandPolicy(snapshots=writer)
                await store.handle_async(far, TILL, "async", TWO, policy=policy)
                assert await writer.flush(timeout_seconds=SECONDS)
        await far.dispose()

    with SnapshotWriter(store, engine, keep=1) as writer:
        for _ in range(2):
            store.handle(engine, TILL, "7", TWO, policy=CommandPolicy(snapshots=writer))
            assert writer.flush(timeout_seconds=SECONDS)
    asyncio.run(beside())

    assert kept(engine) == [("7", 4), ("async", 4)]


def test_what_fails_in_a_task_is_logged_and_the_next_is_written(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = snapshot_writer.write_snapshot

    def failing(conn: Connection, states: Any, subject: Any, stream: Any, **how: Any) -> bool:  # noqa: ANN401
        if stream.key == "bad":
            raise LookupError("secret")
        return write(conn, states, subject, stream, **how)

    async def run() -> int:
        far = create_async_engine(engine.url)
        async with AsyncSnapshotWriter(store, far) as writer:
            for key in ("bad", "good"):  # both wait before the task begins
                assert writer.offer(store.handle(engine, TILL, key, TWO).sourced)
            assert await writer.flush(timeout_seconds=SECONDS)
        await far.dispose()
        return writer.written

    monkeypatch.setattr(snapshot_writer, "write_snapshot", failing)

    assert asyncio.run(run()) == 1
    assert kept(engine) == [("good", 2)]
    assert [vars(record)["reason"] for record in caplog.records] == ["LookupError"]


def test_after_a_fork_another_thread_writes(engine: Engine) -> None:
    with SnapshotWriter(store, engine) as writer:
        gone = threading.Thread(target=int)
        gone.start()
        gone.join(SECONDS)
        writer._thread = gone  # noqa: SLF001 -- what a fork leaves of the parent's

        store.handle(engine, TILL, "7", TWO, policy=CommandPolicy(snapshots=writer))

        assert writer.flush(timeout_seconds=SECONDS)
        assert kept(engine) == [("7", 2)]


def test_an_async_writer_without_a_loop_takes_nothing(engine: Engine) -> None:
    writer = AsyncSnapshotWriter(store, create_async_engine(engine.url))
    handled = store.handle(engine, TILL, "7", TWO)

    assert not writer.offer(handled.sourced)


def test_bounds_that_mean_nothing_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SnapshotWriter(store, engine, capacity=0)
    with pytest.raises(ValueError, match="at least 1"):
        SnapshotWriter(store, engine, keep=0)
