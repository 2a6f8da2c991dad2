"""Shards that are dead, frozen, slow or busy, and what sessions over all shards make of it."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Dialect, Select, create_engine, event, func, select, text
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.orm import selectinload

from datapatterns.embedded import PostgresServer
from datapatterns.errors import (
    PartialAnswerError,
    SettingsError,
    ShardBusyError,
    ShardTimeoutError,
    ShardUnavailableError,
)
from datapatterns.sharding import AllShards, ShardCluster, ShardResult
from datapatterns.sharding.fan_out import InThreads
from datapatterns.sharding.reaching.asking import ask_connected
from datapatterns.sharding.reaching.interrupting import Line
from datapatterns.sharding.reaching.time_limits import silence_limit
from datapatterns.testing import Databases, wait_until
from tests.fixtures.doomed_shards import DOOMED, doomed_urls, fill_each
from tests.fixtures.shard_model import Basket, households, named

pytestmark = pytest.mark.postgres

SOON = 5.0
"""Long before anybody's own time-out."""

ALLOW = {"shard": AllShards(partial="allow", timeout_seconds=1.0)}
EVERYTHING = select(Basket.household_id)


@pytest.fixture(scope="module")
def doomed(databases: Databases) -> Iterator[tuple[list[Any], PostgresServer]]:
    with doomed_urls(databases) as found:
        yield found


@pytest.fixture
def server(doomed: tuple[list[Any], PostgresServer]) -> Iterator[PostgresServer]:
    server = doomed[1]
    yield server
    server.resume()
    if not server.is_running:
        server.start()


@pytest.fixture
def cluster(
    doomed: tuple[list[Any], PostgresServer], server: PostgresServer
) -> Iterator[ShardCluster]:
    assert server.is_running
    options = {"pool_size": 3, "max_overflow": 0, "pool_timeout": 0.2}
    urls = doomed[0]
    with ShardCluster(
        control=urls[0], shards=named(urls), groups=[households], engine_options=options
    ) as cluster:
        yield cluster
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]


@pytest.fixture
def keys(cluster: ShardCluster) -> dict[str, int]:
    return fill_each(cluster)


@contextmanager
def soon() -> Iterator[None]:
    began = monotonic()
    yield
    assert monotonic() - began < SOON


@contextmanager
def locked_table(cluster: ShardCluster, shard: str) -> Iterator[None]:
    """Let who reads baskets on a shard wait."""
    engine = create_engine(cluster.engines[shard].url)
    with engine.connect() as conn:
        conn.execute(text("LOCK basket IN ACCESS EXCLUSIVE MODE"))
        yield
        conn.rollback()
    engine.dispose()


def is_waiting(cluster: ShardCluster, shard: str) -> bool:
    engine = create_engine(cluster.engines[shard].url)
    with engine.connect() as conn:
        found = conn.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            )
        )
    engine.dispose()
    return bool(found)


# Without a shard -------------------------------------------------------------------------------


def test_nothing_is_missing_while_all_are_there(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    with cluster.session() as session:
        result = session.execute(EVERYTHING, execution_options=ALLOW)

        assert isinstance(result, ShardResult)
        assert result.missing_shards == ()
        assert sorted(result.scalars()) == sorted(keys.values())


@pytest.mark.parametrize("fate", ["killed", "frozen"])
def test_rows_are_read_without_a_shard_that_is_gone(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer, fate: str
) -> None:
    with cluster.session() as session:
        session.execute(EVERYTHING, execution_options=ALLOW).all()  # connections that are kept
    (server.kill if fate == "killed" else server.pause)()

    with soon(), cluster.session() as session:
        result = session.execute(EVERYTHING, execution_options=ALLOW)
        assert isinstance(result, ShardResult)
        assert result.missing_shards == (DOOMED,)
        assert sorted(result.scalars()) == sorted([keys["s0"], keys["s1"]])

        assert session.get_one(Basket, (keys["s1"], 1)).cents == keys["s1"]
        session.commit()


@pytest.mark.parametrize("fate", ["killed", "frozen"])
def test_objects_are_read_without_a_shard_that_is_gone(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer, fate: str
) -> None:
    baskets = select(Basket).options(selectinload(Basket.lines))
    with cluster.session() as session:
        assert len(session.scalars(baskets, execution_options=ALLOW).all()) == 3
    (server.kill if fate == "killed" else server.pause)()

    with soon(), cluster.session() as session:
        found = session.scalars(baskets, execution_options=ALLOW).all()

        assert sorted(basket.household_id for basket in found) == sorted([keys["s0"], keys["s1"]])
        assert session.missing_shards == (DOOMED,)


def test_a_shard_that_was_missing_stays_so_until_the_transaction_ends(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer
) -> None:
    server.kill()
    with cluster.session() as session:
        assert len(session.execute(EVERYTHING, execution_options=ALLOW).all()) == 2
        server.start()

        assert len(session.execute(EVERYTHING, execution_options=ALLOW).all()) == 2
        with pytest.raises(ShardUnavailableError):
            session.get(Basket, (keys[DOOMED], 1))
        session.rollback()
        assert len(session.execute(EVERYTHING, execution_options=ALLOW).all()) == 3


def test_what_was_written_is_never_missing(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer
) -> None:
    with cluster.session() as session:
        session.get_one(Basket, (keys[DOOMED], 1)).cents = 7
        session.flush()
        server.kill()

        with pytest.raises(ShardUnavailableError):
            session.execute(EVERYTHING, execution_options=ALLOW)


def test_a_key_whose_shard_is_gone_has_no_rows_and_says_so(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer
) -> None:
    named_key = EVERYTHING.where(Basket.household_id == keys[DOOMED])
    server.kill()

    with cluster.session() as session:
        result: Any = session.execute(named_key, execution_options=ALLOW)
        assert (result.all(), result.missing_shards) == ([], (DOOMED,))
        there: Any = session.execute(
            EVERYTHING.where(Basket.household_id == keys["s0"]), execution_options=ALLOW
        )
        assert (len(there.all()), there.missing_shards) == (1, ())


@pytest.mark.parametrize(
    ("statement", "clause"),
    [
        (select(func.count()).select_from(Basket), "aggregate"),
        (select(Basket.paid, func.sum(Basket.id)).group_by(Basket.paid), "aggregate"),
        (select(Basket.id).order_by(Basket.id).limit(2), "first rows"),
        (select(Basket.id).limit(2).offset(1), "OFFSET"),
    ],
)
def test_what_would_be_wrong_without_a_shard_is_refused(
    cluster: ShardCluster, statement: Select[Any], clause: str
) -> None:
    with cluster.session() as session, pytest.raises(PartialAnswerError, match=clause):
        session.execute(statement, execution_options=ALLOW)


@pytest.mark.parametrize(
    "statement",
    [
        select(Basket.household_id, func.count()).group_by(Basket.household_id),
        select(Basket.household_id).distinct(),
        select(Basket.household_id).order_by(Basket.household_id),
        select(Basket.household_id).limit(2),
    ],
)
def test_what_is_only_short_without_a_shard_is_a_part_of_the_whole(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer, statement: Select[Any]
) -> None:
    with cluster.session(scatter=True) as session:
        whole = session.execute(statement.limit(None)).all()
    server.kill()

    with cluster.session() as session:
        part = session.execute(statement, execution_options=ALLOW).all()

    assert len(part) == 2
    assert set(part) <= set(whole)
    assert keys[DOOMED] not in {row[0] for row in part}


# Deadlines -------------------------------------------------------------------------------------


def test_a_slow_shard_is_cancelled_by_its_deadline(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    bounded = {"shard": AllShards(timeout_seconds=0.2)}
    with locked_table(cluster, "s1"), soon(), cluster.session() as session:
        with pytest.raises(ShardTimeoutError, match=r"'s1' did not answer within 0.2 s"):
            session.execute(EVERYTHING, execution_options=bounded)
        assert not is_waiting(cluster, "s1")
        session.rollback()
        assert session.get_one(Basket, (keys["s0"], 1)).cents == keys["s0"]


@pytest.mark.usefixtures("keys")
def test_what_somebody_else_cancels_has_not_outlasted_its_deadline(cluster: ShardCluster) -> None:
    bounded = {"shard": AllShards(timeout_seconds=60)}

    def cancel() -> None:
        wait_until(lambda: is_waiting(cluster, "s1"))
        engine = create_engine(cluster.engines["s1"].url)
        with engine.connect() as conn:
            conn.execute(
                text(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            )
        engine.dispose()

    thread = threading.Thread(target=cancel)
    with locked_table(cluster, "s1"), soon(), cluster.session() as session:
        thread.start()
        with pytest.raises(DBAPIError, match="user request"):
            session.execute(EVERYTHING, execution_options=bounded)
        thread.join()


def test_a_deadline_ends_with_its_statement(cluster: ShardCluster, keys: dict[str, int]) -> None:
    bounded = {"shard": AllShards(timeout_seconds=7)}
    with cluster.session() as session:
        session.execute(EVERYTHING, execution_options=bounded).all()
        conn = session._work.connection_to("s0")  # noqa: SLF001 -- no public way

        assert conn.scalar(text("SHOW statement_timeout")) == "0"
        conn.execute(text("SET LOCAL statement_timeout = '3s'"))
        shown = select(func.current_setting("statement_timeout"), Basket.id).where(
            Basket.household_id == keys["s0"]
        )
        assert session.execute(shown, execution_options=bounded).one()[0] == "3s"
        assert conn.scalar(text("SHOW statement_timeout")) == "3s"


def test_a_frozen_shard_does_not_outlast_the_deadline(
    cluster: ShardCluster, keys: dict[str, int], server: PostgresServer
) -> None:
    bounded = {"shard": AllShards(timeout_seconds=0.2)}
    with cluster.session() as session:
        session.execute(EVERYTHING, execution_options=bounded).all()
    server.pause()

    with soon(), cluster.session() as session:
        with pytest.raises(ShardTimeoutError, match=DOOMED):
            session.execute(EVERYTHING, execution_options=bounded)
        session.rollback()
        assert session.get_one(Basket, (keys["s0"], 1)).cents == keys["s0"]


def test_a_deadline_that_comes_when_its_statement_has_ended_breaks_nothing(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Callable[[], None]] = []

    class Late(threading.Timer):
        def __init__(self, seconds: float, then: Callable[[], None]) -> None:
            super().__init__(seconds, then)
            late.append(then)  # as if it had been on its way when it was called off

    monkeypatch.setattr("datapatterns.sharding.reaching.time_limits.Timer", Late)
    with cluster.engines["s0"].connect() as conn:
        with silence_limit(conn, "s0", 60):
            assert conn.scalar(text("SELECT 1")) == 1
        for then in late:
            then()
        assert conn.scalar(text("SELECT 2")) == 2


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_a_deadline_that_cannot_be_kept_is_refused(seconds: float) -> None:
    with pytest.raises(SettingsError, match="timeout_seconds"):
        AllShards(timeout_seconds=seconds)


def test_a_policy_that_there_is_not_is_refused(cluster: ShardCluster) -> None:
    with pytest.raises(SettingsError, match="partial"):
        AllShards(partial="ignore")  # type: ignore[arg-type] # that is the point
    with cluster.session() as session, pytest.raises(SettingsError, match="neither"):
        session.execute(EVERYTHING, execution_options={"shard": 7})


# Not waiting for the others --------------------------------------------------------------------


@pytest.mark.usefixtures("keys")
def test_when_one_shard_fails_the_others_are_cancelled(cluster: ShardCluster) -> None:
    fails_on_s1 = select(1 / (Basket.cents - Basket.cents)).where(Basket.id == 1)
    with locked_table(cluster, "s0"), soon(), cluster.session() as session:
        with pytest.raises(DataError, match="division by zero"):
            session.execute(fails_on_s1, execution_options={"scatter": True})
        assert not is_waiting(cluster, "s0")


@pytest.mark.usefixtures("keys")
def test_who_fails_does_not_wait_for_a_frozen_shard(
    cluster: ShardCluster, server: PostgresServer
) -> None:
    fails_on_s1 = select(1 / (Basket.cents - Basket.cents)).where(Basket.id == 1)
    with cluster.session(scatter=True) as session:
        session.execute(EVERYTHING).all()
        server.pause()
        with soon(), pytest.raises(DataError, match="division by zero"):
            session.execute(fails_on_s1)


def test_a_statement_that_is_only_about_to_be_sent_is_cancelled_too(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, tried, together = Line.cancel, threading.Event(), threading.Barrier(2)

    def note(line: Line) -> None:
        cancel(line)
        tried.set()

    def fail() -> None:
        together.wait(30)
        raise LookupError

    def late() -> None:
        together.wait(30)
        assert tried.wait(30)
        slow.execute(text("SELECT pg_sleep(60)"))

    monkeypatch.setattr(Line, "cancel", note)
    with (
        ThreadPoolExecutor(2) as executor,
        cluster.engines["s0"].connect() as failing,
        cluster.engines["s1"].connect() as slow,
    ):
        with soon(), pytest.raises(LookupError):
            ask_connected(InThreads(executor), {"s0": (failing, fail), "s1": (slow, late)})
        assert not slow.invalidated
        slow.rollback()
        assert slow.scalar(text("SELECT 1")) == 1


@pytest.mark.usefixtures("keys")
def test_an_interrupted_caller_leaves_nothing_running(cluster: ShardCluster) -> None:
    def interrupt() -> None:
        wait_until(lambda: is_waiting(cluster, "s0"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with locked_table(cluster, "s0"), cluster.session() as session:
        thread.start()
        with pytest.raises(KeyboardInterrupt), soon():
            session.execute(EVERYTHING, execution_options={"scatter": True})
        thread.join()
        assert not is_waiting(cluster, "s0")


@pytest.mark.usefixtures("keys")
def test_who_gets_no_connection_is_told_so_soon(cluster: ShardCluster) -> None:
    engine = cluster.engines["s1"]
    held = [engine.connect() for _ in range(3)]

    with soon(), cluster.session() as session:
        with pytest.raises(ShardBusyError, match="'s1'"):
            session.execute(EVERYTHING, execution_options={"scatter": True})
        session.rollback()
        result: Any = session.execute(EVERYTHING, execution_options=ALLOW)
        assert result.missing_shards == ("s1",)
    for conn in held:
        conn.close()


def test_a_shard_that_cannot_be_connected_to_is_left_alone(
    cluster: ShardCluster, server: PostgresServer
) -> None:
    server.kill()
    engine = cluster.engines[DOOMED]
    for _ in range(5):
        with pytest.raises(DBAPIError):
            engine.connect()

    with pytest.raises(ShardUnavailableError, match=DOOMED):
        engine.connect()
    cluster.engines["s0"].connect().close()

    server.start()

    def answers() -> bool:
        try:
            engine.connect().close()
        except ShardUnavailableError:
            return False
        return True

    wait_until(answers)


def test_who_listens_to_connecting_is_asked_whenever_added(cluster: ShardCluster) -> None:
    """As who fetches a password that has just changed, or makes the connection otherwise."""
    engine, heard = cluster.engines["s0"], list[str]()

    def first(*_: object) -> None:
        heard.append("first")

    def note(*_: object) -> None:
        heard.append("note")

    def make(dialect: Dialect, _record: object, arguments: list[Any], named: dict[str, Any]) -> Any:  # noqa: ANN401 -- the driver's connection
        heard.append("make")
        return dialect.connect(*arguments, **named)

    event.listen(engine, "do_connect", first, insert=True)
    event.listen(engine, "do_connect", note)
    event.listen(engine, "do_connect", make)
    engine.dispose()
    engine.connect().close()

    assert heard == ["first", "note", "make"]
