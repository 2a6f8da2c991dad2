"""Followers give each event once and in order, wait at next to no cost, and come back."""

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.errors import CheckpointError
from datapatterns.event_sourcing import (
    ANY,
    START,
    AsyncFollower,
    AsyncLogSignal,
    EventStore,
    Follower,
    LogFilter,
    LogPage,
    LogSignal,
    NewEvent,
    Pace,
    Position,
    RecordedEvent,
    StreamId,
    publish_mark,
)
from datapatterns.event_sourcing.log.same_server import SameServer
from datapatterns.sql.migrating import upgrade
from datapatterns.testing import ManualClock, wait_until

store = EventStore()
FOR_EVER = Pace(seconds_min=3_600, seconds_max=3_600)
ENOUGH_SECONDS = 60


def write(conn: Connection, key: str = "a", event_type: str = "thing.happened") -> Position:
    events = [NewEvent(event_type, {})]
    return store.append(conn, StreamId("s", key), events, expected_version=ANY).position


@dataclass
class Following:
    """A follower at work elsewhere, and what it has given so far."""

    stop: Callable[[], None]
    wake: Callable[[], None]
    seen: list[RecordedEvent] = field(default_factory=list)
    pages: list[LogPage] = field(default_factory=list)
    ended: Future[None] = field(default_factory=Future)

    def take(self, page: LogPage) -> None:
        self.pages.append(page)
        self.seen += page.events

    def wait_for(self, events: int) -> None:
        wait_until(
            lambda: len(self.seen) >= events or self.ended.done(), deadline_seconds=ENOUGH_SECONDS
        )


@contextmanager
def following(colour: str, engine: Engine, **options: Any) -> Iterator[Following]:  # noqa: ANN401
    """Follow in a thread, or in a loop in a thread, until the block ends."""
    with ThreadPoolExecutor(1) as pool:
        if colour == "sync":
            signal = LogSignal(store, engine)
            follower = Follower(store, engine, signal=signal, **options)
            at_work = Following(follower.stop, signal.wake)

            def follow() -> None:
                for page in follower.pages():
                    at_work.take(page)

            at_work.ended = pool.submit(follow)
        else:
            at_work = start_async(pool, engine, options)
        try:
            yield at_work
        finally:
            at_work.stop()
        at_work.ended.result(timeout=ENOUGH_SECONDS)


def start_async(pool: ThreadPoolExecutor, engine: Engine, options: dict[str, Any]) -> Following:
    ready: Future[tuple[asyncio.AbstractEventLoop, AsyncFollower, AsyncLogSignal]] = Future()

    async def follow(async_engine: AsyncEngine) -> None:
        signal = AsyncLogSignal(store, async_engine)
        follower = AsyncFollower(store, async_engine, signal=signal, **options)
        ready.set_result((asyncio.get_running_loop(), follower, signal))
        try:
            async for page in follower.pages():
                at_work.take(page)
        finally:
            await async_engine.dispose()

    def run() -> None:
        asyncio.run(follow(create_async_engine(engine.url)))

    at_work = Following(lambda: None, lambda: None)
    at_work.ended = pool.submit(run)
    loop, follower, signal = ready.result(ENOUGH_SECONDS)

    def in_loop(function: Callable[[], None]) -> Callable[[], None]:
        return lambda: None if loop.is_closed() else void(loop.call_soon_threadsafe(function))

    at_work.stop, at_work.wake = in_loop(follower.stop), in_loop(signal.wake)
    return at_work


def void(_: object) -> None: ...


both = pytest.mark.parametrize("colour", ["sync", "async"])


def random_writer(engine: Engine, seed: int) -> int:
    """Append, pause in the middle, roll back; return how many events were committed."""
    chance = random.Random(seed)  # noqa: S311 -- to be repeated, not to be secret
    committed = 0
    for _ in range(40):
        with engine.connect() as conn:
            count = chance.choice([1, 1, 3])
            for key in sorted(chance.sample("abcdef", count)):
                write(conn, key)
            if chance.random() < 0.2:
                with conn.begin_nested() as savepoint:
                    write(conn, "z")
                    savepoint.rollback()
            if chance.random() < 0.2:
                continue
            if chance.random() < 0.3:
                conn.execute(text("SELECT pg_sleep(0.002)"))  # a slow writer, not a slow test
            conn.commit()
            committed += count
    return committed


@both
def test_under_concurrent_writers_each_event_comes_once_and_in_order(
    engine: Engine, colour: str
) -> None:
    with following(colour, engine, limit=7) as at_work, ThreadPoolExecutor(4) as pool:
        committed = sum(pool.map(lambda seed: random_writer(engine, seed), range(4)))
        at_work.wait_for(committed)

    with engine.begin() as conn:
        assert at_work.seen == store.read_log(conn, limit=10_000).events
    assert len(at_work.seen) == committed
    checkpoints = [page.checkpoint for page in at_work.pages]
    assert checkpoints == sorted(set(checkpoints))


@both
def test_who_waits_for_ever_can_be_woken_and_stopped(engine: Engine, colour: str) -> None:
    with following(colour, engine, pace=FOR_EVER) as at_work:
        with engine.begin() as conn:
            write(conn)
        at_work.wake()
        at_work.wait_for(1)
        with engine.begin() as conn:
            write(conn)
        at_work.wake()
        at_work.wait_for(2)

    assert len(at_work.seen) == 2


@both
def test_a_killed_session_is_replaced_and_the_checkpoint_asked_for_again(
    engine: Engine, colour: str
) -> None:
    asked = []

    def kept(conn: Connection) -> Position:
        asked.append(conn.scalar(text("SELECT pg_backend_pid()")))
        return at_work.pages[-1].checkpoint if asked[1:] else START

    # An engine of its own: disposing of the test's would replace the follower's session unseen.
    own = create_engine(engine.url)
    with following(colour, own, after=kept) as at_work:
        with engine.begin() as conn:
            write(conn)
        at_work.wait_for(1)
        plain = create_engine(engine.url, isolation_level="AUTOCOMMIT")
        with plain.connect() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        plain.dispose()
        engine.dispose()
        wait_until(lambda: len(asked) > 1 or at_work.ended.done(), deadline_seconds=ENOUGH_SECONDS)
        with engine.begin() as conn:
            write(conn)
        at_work.wait_for(2)
    own.dispose()

    assert [event.version for event in at_work.seen] == [1, 2]


@both
def test_a_connection_that_is_lost_for_too_long_ends_it(colour: str) -> None:
    with EmbeddedServers() as servers:
        server = servers.postgres("gone")
        engine = create_engine(server.url)
        with engine.begin() as conn:
            upgrade(conn)
        server.kill()

        with (
            pytest.raises(OperationalError),
            following(colour, engine, pace=Pace(lost_seconds_max=0.05)) as at_work,
        ):
            at_work.ended.exception(timeout=ENOUGH_SECONDS)
        engine.dispose()


def test_after_a_crash_events_at_positions_that_were_passed_before_are_seen() -> None:
    """And the control: who kept its checkpoint in memory would be refused, or skip them."""
    # Nothing is written down unless somebody commits.
    quiet = {"wal_writer_delay": "10s", "bgwriter_delay": "10s"}
    with EmbeddedServers() as servers:
        server = servers.postgres("crashing", settings=quiet)
        # Two engines: what a thread has checked out must not be disposed of beneath it.
        with closing_engine(server.url) as engine, closing_engine(server.url) as own:
            with engine.begin() as conn:
                upgrade(conn)
            with engine.begin() as conn:
                first = write(conn)
            with following("sync", own) as at_work:
                at_work.wait_for(1)
                with engine.connect() as conn:
                    for _ in range(100):
                        write(conn)
                    conn.rollback()
                wait_until(
                    lambda: at_work.pages[-1].checkpoint == first + 100,
                    deadline_seconds=ENOUGH_SECONDS,
                )
                server.kill()
                server.start()
                engine.dispose()
                with engine.begin() as conn:
                    second = write(conn, "after the crash")
                at_work.wait_for(2)

                assert second < first + 100
                with engine.begin() as conn, pytest.raises(CheckpointError):
                    store.read_log(conn, Position(first + 100))
            assert [event.position for event in at_work.seen] == [first, second]


def pass_a_crash(server: PostgresServer, engine: Engine) -> tuple[set[Position], set[Position]]:
    """Return what was written after a crash that a follower's pool hides, and what it has seen."""
    with engine.begin() as conn:
        write(conn)
    follower = Follower(store, engine)
    with closing(follower.pages()) as pages:
        first = next(pages).checkpoint
        with engine.connect() as conn:
            for _ in range(100):
                write(conn)
            conn.rollback()
        assert next(pages).checkpoint == first + 100
        server.kill()
        server.start()
        with engine.begin() as conn:
            written = {write(conn, "after the crash") for _ in range(150)}
        assert min(written) < first + 100 < max(written)
        seen: set[Position] = set()
        while max(written) not in seen:
            seen |= {event.position for event in next(pages).events}
    return written, seen


def test_a_crash_that_the_pool_has_hidden_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while a page is in hand, and the pool replaces its connection; and the control."""
    quiet = {"wal_writer_delay": "10s", "bgwriter_delay": "10s"}
    with EmbeddedServers() as servers:
        server = servers.postgres("crashing", settings=quiet)
        engine = create_engine(server.url, pool_pre_ping=True)
        with engine.begin() as conn:
            upgrade(conn)

        written, seen = pass_a_crash(server, engine)
        assert seen == written
        monkeypatch.setattr(SameServer, "answers", lambda *_: True)
        written, seen = pass_a_crash(server, engine)
        assert seen < written
        engine.dispose()


def test_a_place_of_the_pool_that_has_another_connection_may_hide_a_crash(engine: Engine) -> None:
    server, other = SameServer(), SameServer()
    with engine.connect() as conn:
        assert server.answers(conn)
        assert other.answers(conn)
        conn.invalidate()
    with engine.connect() as first, engine.connect() as second:
        assert server.answers(second)  # a place that was not in use before
        assert not server.answers(first)
        assert server.answers(first)
        assert not other.answers(first)


@contextmanager
def closing_engine(url: Any) -> Iterator[Engine]:  # noqa: ANN401 -- a URL
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def count_statements(engine: Engine) -> list[str]:
    sent: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    event.listen(engine, "begin", lambda _conn: sent.append("BEGIN"))
    return sent


def test_an_idle_follower_sends_one_cheap_statement_every_quarter_of_a_second(
    engine: Engine,
) -> None:
    with engine.begin() as conn:
        write(conn)
    clock = ManualClock()
    sent = count_statements(engine)
    follower = Follower(store, engine, clock=clock)

    with closing(follower.pages()) as pages:
        next(pages)
        began = len(sent)

        def stop_after_a_minute(*_: object) -> None:
            if clock.monotonic() > 60:
                follower.stop()

        event.listen(engine, "before_cursor_execute", stop_after_a_minute)
        assert list(pages) == []

    idle = [statement for statement in sent[began:] if statement != "BEGIN"]
    assert all("last_value" in statement for statement in idle)
    assert 235 <= len(idle) <= 255


def test_followers_that_share_a_signal_look_once(engine: Engine) -> None:
    clock = ManualClock()
    signal = LogSignal(store, engine, clock=clock)
    sent = count_statements(engine)

    for _ in range(10):
        signal.look(0.25)
    once = len(sent)
    clock.advance(0.25)
    signal.look(0.25)

    assert (sent.count("BEGIN"), len(sent)) == (2, 2 * once)


def test_what_one_follower_sees_ends_the_pause_of_another(engine: Engine) -> None:
    signal = LogSignal(store, engine)
    with ThreadPoolExecutor(1) as pool:
        slow = Follower(store, engine, signal=signal, pace=FOR_EVER)
        page = pool.submit(next, slow.pages())
        with engine.begin() as conn:
            write(conn)
        wait_until(lambda: signal.look(0) == 1, deadline_seconds=ENOUGH_SECONDS)

        assert len(page.result(ENOUGH_SECONDS).events) == 1


def test_an_open_writer_holds_a_follower_back_until_it_commits(engine: Engine) -> None:
    with following("sync", engine) as at_work, engine.connect() as late:
        write(late, "late")
        with engine.begin() as conn:
            write(conn, "quick")
        late.commit()
        at_work.wait_for(2)

    assert [event.stream.key for event in at_work.seen] == ["late", "quick"]


def test_a_filter_moves_the_checkpoint_over_what_does_not_match(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, event_type="other.thing")
        write(conn)
    wanted = LogFilter(event_types=["thing.happened"])
    with following("sync", engine, matching=wanted) as at_work:
        at_work.wait_for(1)
        with engine.begin() as conn:
            last = write(conn, event_type="other.thing")
        wait_until(lambda: at_work.pages[-1].checkpoint == last, deadline_seconds=ENOUGH_SECONDS)

    assert [event.event_type for event in at_work.seen] == ["thing.happened"]


@both
def test_a_follower_of_the_published_mark_sees_what_is_published(
    engine: Engine, colour: str
) -> None:
    with engine.begin() as conn:
        write(conn)
        publish_mark(conn, store)
    with following(colour, engine, published=True) as at_work:
        with engine.begin() as conn:
            publish_mark(conn, store)
        at_work.wait_for(1)

    assert len(at_work.seen) == 1
