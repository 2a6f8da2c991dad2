"""Everything at once against the event store: readers are given each event once, in one order.

The everyday size takes seconds; ``make torture`` writes a million events, or as many as
``DATAPATTERNS_TORTURE_EVENTS`` says.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.event_sourcing import ANY, START, EventStore, NewEvent, Position, StreamId
from datapatterns.migrations import Migrations
from datapatterns.testing import Databases, PostgresFaults, wait_until
from tests.torture.harness import torture
from tests.torture.judging import OUT_OF_ORDER, Report
from tests.torture.plan import How, Plan
from tests.torture.variants import UNFENCED

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

EVENTS = int(os.environ.get("DATAPATTERNS_TORTURE_EVENTS", "3000"))
CONTROL = Plan(1_500, crews=1, writers=5, imported=50, kills=False)
MANY_EVENTS = 100_000
CONTROL_RUNS = 5
STORE = EventStore()
LAST = text("SELECT pg_sequence_last_value('datapatterns.event_position')")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    # A lazy writer of the log leaves more to be lost when the server is killed.
    with EmbeddedServers(durable=False) as servers:
        yield servers.postgres(settings={"wal_writer_delay": "10s"})


@pytest.fixture
def faults(server: PostgresServer) -> Iterator[PostgresFaults]:
    Migrations({"main": server.url}).upgrade()
    with PostgresFaults(server) as faults:
        yield faults


def tell(report: Report, capsys: pytest.CaptureFixture[str], what: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {report}\n")


def nobody_waits_for_bystanders(engine: Engine) -> None:
    """The mark is where the log ends, and only appenders hold it back."""
    with engine.connect() as conn, engine.connect() as late, engine.connect() as quick:
        conn = conn.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
        assert STORE.blockers(conn) == []
        assert STORE.high_water_mark(conn) == conn.scalar(LAST)

        first = append_one(late, "late")
        append_one(quick, "quick")
        quick.commit()
        assert STORE.high_water_mark(conn) == first - 1
        assert [each.pid for each in STORE.blockers(conn)] == [pid_of(late)]

        late.rollback()
        assert STORE.blockers(conn) == []
        assert STORE.high_water_mark(conn) == conn.scalar(LAST)


def append_one(conn: Connection, key: str) -> Position:
    stream = StreamId("bystander", key)
    return STORE.append(conn, stream, [NewEvent("seen", {})], expected_version=ANY).position


def pid_of(conn: Connection) -> int:
    return int(conn.scalar(text("SELECT pg_backend_pid()")) or 0)


def test_every_reader_is_given_every_event_once_and_in_one_order(
    faults: PostgresFaults, capsys: pytest.CaptureFixture[str]
) -> None:
    # The keys of fences have 31 bits: half of the events lie beyond their first round.
    plan = Plan(
        EVENTS, readers=(How.LOG, How.PAGES, How.MARK), crashes=2, start=2**31 - EVENTS // 2
    )

    report = torture(faults, plan, while_open=nobody_waits_for_bystanders)

    tell(report, capsys, "fenced")
    assert report.broken == {}
    assert report.events >= 0.8 * EVENTS
    if EVENTS >= MANY_EVENTS:  # before that, it is a matter of luck
        assert report.repeated > 0
        assert report.went_back > 0


@pytest.mark.parametrize("hole", UNFENCED)
def test_the_same_torture_finds_what_readers_skip_without_the_fence(
    databases: Databases, hole: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tortured_until_something_is_skipped(databases, How.LOG, UNFENCED[hole])

    tell(report, capsys, hole)


def test_the_same_torture_finds_what_readers_skip_that_trust_what_shows(
    databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tortured_until_something_is_skipped(databases, How.VISIBLE)

    tell(report, capsys, How.VISIBLE.value)


def test_the_mark_and_the_rows_in_one_statement_miss_what_commits_between_them(
    engine: Engine,
) -> None:
    """Load finds this hole too seldom: so the statement is held between snapshot and mark."""
    with engine.connect() as gatekeeper, engine.connect() as writer, engine.connect() as reader:
        gatekeeper.execute(text("SELECT pg_advisory_xact_lock(77)"))
        position = append_one(writer, "late")
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(reader.execute, MARK_AND_ROWS)
            wait_until(lambda: waiters(gatekeeper) == 1)
            writer.commit()
            gatekeeper.rollback()
            mark, rows = reading.result().one()
        reader.rollback()

        assert (mark, rows) == (position, 0)  # it would go on after the event, without it
        assert [event.position for event in STORE.read_log(reader).events] == [position]


MARK_AND_ROWS = text(
    "WITH gate AS MATERIALIZED (SELECT pg_advisory_xact_lock(77)),"
    " mark AS MATERIALIZED (SELECT datapatterns.high_water_mark() AS m FROM gate)"
    " SELECT m, (SELECT count(*) FROM datapatterns.event WHERE position <= m) FROM mark"
)


def waiters(conn: Connection) -> int:
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return conn.scalar(text(waiting)) or 0


def test_a_crash_draws_positions_again_so_a_checkpoint_must_be_persisted(
    faults: PostgresFaults,
) -> None:
    engine = create_engine(faults.url, poolclass=NullPool)
    persisted = in_memory = drawn_again = START
    for _ in range(5):  # somebody else may flush the server's log just then
        with engine.connect() as conn:
            persisted = append_one(conn, "before")
            conn.commit()
            in_memory = draw_and_undo(conn, engine)
            faults.crash_and_restart()
            conn.invalidate()
        with engine.begin() as conn:
            drawn_again = append_one(conn, "after")
            STORE.append(conn, StreamId("bystander", "many"), many(600), expected_version=ANY)
        if drawn_again < in_memory:
            break

    with engine.connect() as conn:
        assert drawn_again in positions(conn, after=persisted)
        assert drawn_again not in positions(conn, after=in_memory)


def draw_and_undo(conn: Connection, engine: Engine) -> Position:
    """Draw positions that nothing flushes; return the mark that a reader gets meanwhile."""
    with conn.begin_nested() as savepoint:
        STORE.append(conn, StreamId("bystander", "many"), many(300), expected_version=ANY)
        savepoint.rollback()
    with engine.connect() as reader:
        return STORE.high_water_mark(reader)


def many(count: int) -> list[NewEvent]:
    return [NewEvent("seen", {}) for _ in range(count)]


def positions(conn: Connection, *, after: Position) -> list[Position]:
    return [event.position for event in STORE.read_log(conn, after, limit=2_000).events]


def tortured_until_something_is_skipped(
    databases: Databases, how: How, make_hole: Callable[[Connection], None] = lambda _: None
) -> Report:
    """Torture it up to some times; only the order of things may suffer."""
    report = None
    for run in range(CONTROL_RUNS):
        plan = replace(CONTROL, readers=(how,), seed=run)
        with databases.lend() as url, PostgresFaults(url) as faults:
            engine = create_engine(url, poolclass=NullPool)
            with engine.begin() as conn:
                make_hole(conn)
            report = torture(faults, plan)
        if any(report.skipped):
            break
    assert report is not None
    assert any(report.skipped), f"{CONTROL_RUNS} runs, and nobody noticed"
    assert report.broken.keys() <= {"skipped by reader 0", OUT_OF_ORDER}
    return report
