"""After a crash positions are drawn again, for other events, and followers see those, too."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.errors import CheckpointError
from datapatterns.event_sourcing import AsyncFollower, Follower, LogSignal, Position
from datapatterns.event_sourcing.log.same_server import SameServer, life_of
from datapatterns.sql.migrating import upgrade
from datapatterns.testing import ManualClock, wait_until
from datapatterns.testing.faults import PostgresFaults
from tests.fixtures.followers import ENOUGH_SECONDS, following, store, write

ROLLED_BACK = 100


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that writes nothing down unless somebody commits."""
    quiet = {"wal_writer_delay": "10s", "bgwriter_delay": "10s"}
    with EmbeddedServers() as servers:
        server = servers.postgres("crashing", settings=quiet)
        with closing_engine(server.url) as engine, engine.begin() as conn:
            upgrade(conn)
        yield server


@pytest.fixture
def engine(server: PostgresServer) -> Iterator[Engine]:
    """For all but the follower; no connection of it outlives what it was taken for."""
    with closing_engine(server.url, poolclass=NullPool) as engine:
        yield engine


@contextmanager
def closing_engine(url: Any, **options: Any) -> Iterator[Engine]:  # noqa: ANN401 -- create_engine's
    engine = create_engine(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


def draw_and_roll_back(engine: Engine) -> None:
    with engine.connect() as conn:
        for _ in range(ROLLED_BACK):
            write(conn)
        conn.rollback()


def test_events_at_positions_that_were_passed_before_are_seen(
    server: PostgresServer, engine: Engine
) -> None:
    """And the control: who kept its checkpoint in memory would be refused, or skip them."""
    with engine.begin() as conn:
        begin = write(conn)
        first = write(conn)
    with (
        closing_engine(server.url) as own,
        following("sync", own, after=begin) as at_work,
    ):
        at_work.wait_for(1)
        draw_and_roll_back(engine)
        wait_until(
            lambda: at_work.pages[-1].checkpoint == first + ROLLED_BACK,
            deadline_seconds=ENOUGH_SECONDS,
        )
        server.kill()
        server.start()
        with engine.begin() as conn:
            second = write(conn, "after the crash")
        at_work.wait_for(2)

        assert second < first + ROLLED_BACK
        with engine.begin() as conn, pytest.raises(CheckpointError):
            store.read_log(conn, Position(first + ROLLED_BACK))
    assert [event.position for event in at_work.seen] == [first, second]


class Crash:
    """One way to lose what was not written down."""

    def __init__(self, server: PostgresServer, engine: Engine, *, whole: bool) -> None:
        self._server, self._engine, self._whole = server, engine, whole

    def strike(self) -> None:
        """Let the server, or one of its sessions, die; return when it answers again."""
        if self._whole:
            self._server.kill()
            self._server.start()
            return
        with PostgresFaults(self._server.url) as faults, self._engine.connect() as doomed:
            faults.crash_backend(doomed.scalar(text("SELECT pg_backend_pid()")))
            doomed.invalidate()


@pytest.fixture(params=[True, False], ids=["of the server", "of a session"])
def crash(server: PostgresServer, engine: Engine, request: pytest.FixtureRequest) -> Crash:
    """Each way in turn; after the second the server is as old as before."""
    return Crash(server, engine, whole=request.param)


class HidingPool:
    """A pool that gives another connection after a crash, without a word.

    Attributes:
        engine: What has it.
    """

    def __init__(self, engine: Engine, *, occupied: bool) -> None:
        self.engine, self._occupied = engine, occupied

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let somebody else have the place that was in use before, where that is the way."""
        if not self._occupied:
            yield
            return
        with self.engine.connect():
            yield


@pytest.fixture(params=["tested", "without places", "occupied"])
def pool(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[HidingPool]:
    """Each way in turn: connections are tested, or opened each time, or another place is free."""
    options: dict[str, Any] = {"pool_pre_ping": True}
    if request.param == "without places":
        options = {"poolclass": NullPool}
    with closing_engine(server.url, **options) as engine:
        yield HidingPool(engine, occupied=request.param == "occupied")


class Minutes(ManualClock):
    """A clock that gives one minute to a follower."""

    def __init__(self) -> None:
        super().__init__()
        self._follower: Follower | AsyncFollower | None = None
        self._end = 0.0

    def give(self, follower: Follower | AsyncFollower) -> None:
        """Stop it in a minute."""
        self._follower, self._end = follower, self.monotonic() + 60

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self._follower and self.monotonic() > self._end:
            self._follower.stop()


class Followed:
    """Two followers with one signal, that look for a minute at most."""

    def __init__(self, engine: Engine, after: Position) -> None:
        self._clock = Minutes()
        signal = LogSignal(store, engine, clock=self._clock)
        followers = [
            Follower(store, engine, after, signal=signal, clock=self._clock) for _ in range(2)
        ]
        self._pages = [(follower, follower.pages()) for follower in followers]

    def reach(self, checkpoint: Position) -> None:
        """Let both get there."""
        for _, pages in self._pages:
            while next(pages).checkpoint != checkpoint:
                pass

    def see(self, events: int) -> list[set[Position]]:
        """Return where each sees so many events, or fewer if it sees no more in a minute."""
        seen: list[set[Position]] = []
        for follower, pages in self._pages:
            self._clock.give(follower)
            with closing(pages):
                seen.append(set())
                for page in pages:
                    seen[-1] |= {event.position for event in page.events}
                    if len(seen[-1]) == events:
                        break
        return seen


def test_a_reset_of_statistics_is_taken_for_a_crash_once(engine: Engine) -> None:
    """It looks like one to sessions that begin later, but the others have not seen any."""
    with engine.begin() as conn:
        begin = write(conn)
    reached, begun, clock = [begin], 0, Minutes()

    def kept(_conn: Connection) -> Position:
        nonlocal begun
        begun += 1
        return reached[-1]

    with closing_engine(engine.url, pool_size=2) as own:
        with own.connect(), own.connect():
            pass  # so that there are two places, used in turn
        follower = Follower(store, own, kept, clock=clock)
        clock.give(follower)
        with closing(follower.pages()) as pages:
            for number in range(12):
                if number == 4:
                    with engine.begin() as conn:
                        conn.execute(text("SELECT pg_stat_reset_shared('bgwriter')"))
                    with own.connect() as conn:
                        conn.invalidate()
                with engine.begin() as conn:
                    written = write(conn)
                reached += [event.position for page in islice(pages, 1) for event in page.events]
                assert reached[-1] == written

    assert begun == 2


def test_whoever_looks_at_another_server_than_it_reads_sees_no_crash_in_that(
    engine: Engine, datapatterns_engine: Engine
) -> None:
    """As those do that read from a standby and hear from the primary that the log goes on."""
    with engine.begin() as conn:
        written = write(conn)
    begun, clock = 0, Minutes()

    def kept(_conn: Connection) -> Position:
        nonlocal begun
        begun += 1
        return written

    signal = LogSignal(store, datapatterns_engine, clock=clock)
    follower = Follower(store, engine, kept, signal=signal, clock=clock)
    clock.give(follower)

    assert list(follower.pages()) == []
    assert begun == 1


# One lies before what was passed, so that the log does not seem to go on; of many some lie behind.
@pytest.mark.parametrize("count", [1, 150])
@pytest.mark.parametrize("is_noticed", [True, False], ids=["noticed", "control"])
def test_a_crash_that_the_pool_has_hidden_is_noticed(
    engine: Engine,
    crash: Crash,
    pool: HidingPool,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    *,
    is_noticed: bool,
) -> None:
    """It comes while no connection is in use. The control: who does not notice it, skips."""
    with engine.begin() as conn:
        begin = write(conn)
    followed = Followed(pool.engine, begin)
    with engine.begin() as conn:
        first = write(conn)
    followed.reach(first)
    draw_and_roll_back(engine)
    passed = Position(first + ROLLED_BACK)
    followed.reach(passed)
    if not is_noticed:
        monkeypatch.setattr(SameServer, "lives", lambda *_: True)

    crash.strike()
    with engine.begin() as conn:
        written = {write(conn, "after the crash") for _ in range(count)}
    with pool.in_use():
        seen = followed.see(count)

    assert min(written) < passed
    assert seen == [written if is_noticed else {at for at in written if at > passed}] * 2


def test_a_task_that_only_looks_notices_it_too(engine: Engine, crash: Crash) -> None:
    with engine.begin() as conn:
        begin = write(conn)
        passed = Position(begin + ROLLED_BACK)

    async def work() -> None:
        own = create_async_engine(engine.url, poolclass=NullPool)
        clock = Minutes()
        follower = AsyncFollower(store, own, begin, clock=clock)
        pages = follower.pages()
        draw_and_roll_back(engine)
        assert (await anext(pages)).checkpoint == passed
        crash.strike()
        with engine.begin() as conn:
            written = write(conn, "after the crash")
        clock.give(follower)
        seen = {event.position async for page in pages for event in page.events}
        await own.dispose()
        assert written < passed
        assert seen == {written}

    asyncio.run(work())


def test_who_may_not_read_the_statistics_knows_the_life_of_the_server(engine: Engine) -> None:
    with engine.connect() as conn:
        known = life_of(conn, None)
    with engine.connect() as conn:
        conn.execute(text("REVOKE SELECT ON pg_catalog.pg_stat_bgwriter FROM PUBLIC"))
        conn.execute(text("SET LOCAL ROLE pg_signal_backend"))  # it has no other rights

        assert life_of(conn, None) == known
        with pytest.raises(ProgrammingError, match="permission denied"):
            conn.execute(text("SELECT stats_reset FROM pg_stat_bgwriter"))
        conn.rollback()
