"""Whoever wrote waits until it has been consumed, in a thread or a task, until a deadline."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.change_log import ChangeLog, ChangeToken, change_token, current_snapshot
from datapatterns.errors import ConsumerBehindError, ConsumerMissingError
from datapatterns.testing import ManualClock, wait_until
from tests.fixtures.standbys import replicated

LOG = ChangeLog()
Wait = Callable[..., None]


@pytest.fixture
def token(engine: Engine) -> ChangeToken:
    """That of a write which somebody is to consume."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE stock (id int)"))
        log_name = LOG.capture(conn, "stock", ["id"])
        LOG.register_consumer(conn, "relay", "test", log_names=[log_name])
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO stock VALUES (1)"))
        return change_token(conn)


@pytest.fixture(params=["sync", "async"])
def wait(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Wait]:
    """Waits in a thread, or in a task."""
    if request.param == "sync":
        yield lambda *args, **kwargs: LOG.wait(engine, *args, **kwargs)
        return
    async_engine = create_async_engine(engine.url)
    with asyncio.Runner() as runner:
        yield lambda *args, **kwargs: runner.run(LOG.wait_async(async_engine, *args, **kwargs))
        runner.run(async_engine.dispose())


def consume(conn: Connection) -> bool:
    """Take what is pending; return whether the server is on another timeline by now."""
    consumer = LOG.lock_consumer(conn, "relay")
    assert consumer is not None
    LOG.advance_consumer(conn, "relay", conn.execute(select(current_snapshot)).scalar_one())
    return consumer.has_switched


class Consuming(ManualClock):
    """A clock whose third pause is used by somebody to consume."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.pauses.append(seconds)
        if len(self.pauses) == 3:
            with self.engine.begin() as conn:
                consume(conn)


def test_the_wait_ends_when_the_write_was_consumed(engine: Engine, token: ChangeToken) -> None:
    clock = Consuming(engine)

    LOG.wait(engine, "relay", token, timeout_seconds=60, clock=clock)

    assert clock.pauses == [0.005, 0.01, 0.02]


def test_what_was_consumed_is_not_waited_for(
    engine: Engine, token: ChangeToken, wait: Wait
) -> None:
    with engine.begin() as conn:
        consume(conn)

    wait("relay", token, timeout_seconds=0)


def test_the_deadline_passes_and_the_error_says_where_to_look(
    token: ChangeToken, wait: Wait
) -> None:
    with pytest.raises(ConsumerBehindError, match=r"ChangeLog.status\(\)") as caught:
        wait("relay", token, timeout_seconds=0.01)

    assert (caught.value.name, caught.value.timeout_seconds) == ("relay", 0.01)
    with pytest.raises(ConsumerMissingError):
        wait("nobody", token, timeout_seconds=0)


def test_a_rolled_back_write_is_not_waited_for(
    engine: Engine, token: ChangeToken, wait: Wait
) -> None:
    with engine.connect() as conn:
        conn.execute(text("INSERT INTO stock VALUES (2)"))
        undone = change_token(conn)
        conn.rollback()
    with engine.begin() as conn:
        consume(conn)

    assert undone != token
    wait("relay", undone, timeout_seconds=0)


def test_a_standby_tells_what_is_consumed_and_goes_on_from_there_on_a_timeline_of_its_own() -> None:
    with replicated() as (primary, standby, server):
        with primary.begin() as conn:
            conn.execute(text("CREATE TABLE stock (id int)"))
            log_name = LOG.capture(conn, "stock", ["id"])
            LOG.register_consumer(conn, "relay", "test", log_names=[log_name])
        with primary.connect() as late:
            late.execute(text("INSERT INTO stock VALUES (1)"))
            token = change_token(late)
            with primary.begin() as conn:
                assert not consume(conn)
            catch_up(primary, standby)
            with standby.connect() as conn:
                # Its own snapshot would say that it shows what is still in progress.
                assert not LOG.has_consumed(conn, "relay", token)
                assert not LOG.status(conn).consumers["relay"].has_switched
            late.commit()
        with primary.begin() as conn:
            consume(conn)
        LOG.wait(standby, "relay", token, timeout_seconds=60)
        primary.dispose()
        server.stop()

        with standby.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
            assert conn.scalar(text("SELECT pg_promote()"))
            assert LOG.status(conn).consumers["relay"].has_switched
        switched = []
        for _ in range(2):
            with standby.begin() as conn:
                switched.append(consume(conn))
        assert switched == [True, False]


def catch_up(primary: Engine, standby: Engine) -> None:
    """Return when the standby shows what has committed."""
    with primary.connect() as conn:
        lsn = conn.scalar(text("SELECT pg_current_wal_lsn()::text"))
    replayed = text("SELECT pg_last_wal_replay_lsn() >= CAST(:lsn AS pg_lsn)")

    def has_replayed() -> bool:
        with standby.connect() as conn:
            return bool(conn.scalar(replayed, {"lsn": lsn}))

    wait_until(has_replayed, deadline_seconds=60)
