"""Who holds readers back is named, with what they hold back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text

from datapatterns.errors import IsolationLevelError
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    ImportedEvent,
    LogFilter,
    NewEvent,
    StreamId,
    final_until,
)
from tests.fixtures.colours import Call
from tests.interleavings.guards import statements_without

store = EventStore()


def write(conn: Connection, key: str = "a", count: int = 1) -> None:
    events = [NewEvent("thing.happened", {}) for _ in range(count)]
    store.append(conn, StreamId("s", key), events, expected_version=ANY)


@contextmanager
def prepared(engine: Engine) -> Iterator[str]:
    """Leave a transaction prepared that has appended, and roll it back in the end."""
    name = f"test {uuid4().hex}"
    with engine.connect() as conn:
        if conn.scalar(text("SHOW max_prepared_transactions")) == "0":
            pytest.skip("this server has no prepared transactions")
        write(conn, "prepared")
        conn.exec_driver_sql(f"PREPARE TRANSACTION '{name}'")
        conn.commit()
    try:
        yield name
    finally:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql(f"ROLLBACK PREPARED '{name}'")


def test_each_says_how_many_positions_it_holds_back_and_what_it_calls_itself(
    engine: Engine,
) -> None:
    till = create_engine(engine.url, connect_args={"application_name": "till 4"})
    with till.connect() as oldest, engine.connect() as younger:
        write(oldest, "a", 3)
        write(younger, "b", 2)
        with engine.begin() as conn:
            write(conn, "c", 10)
        with engine.begin() as conn:
            drawn = 15
            mark = store.high_water_mark(conn)
            first, second = store.blockers(conn)
    till.dispose()

    assert (first.application, first.positions, drawn - mark) == ("till 4", 15, 15)
    assert (second.application, second.positions) == (None, 12)
    assert first.client is None or "." in first.client or ":" in first.client


def test_an_idle_session_and_a_prepared_transaction_are_told_apart(
    engine: Engine, call: Call
) -> None:
    with prepared(engine) as name, engine.connect() as idle:
        write(idle, "idle")

        blockers = {one.state: one for one in call(store.blockers)}

    assert set(blockers) == {"prepared", "idle in transaction"}
    assert (blockers["prepared"].prepared_as, blockers["prepared"].positions) == (name, 2)
    assert blockers["prepared"].application is None
    assert blockers["idle in transaction"].positions == 1


@pytest.mark.skipif("LEAST_RIGHTS" in os.environ, reason="it takes on a role of its own")
def test_a_plain_role_sees_that_somebody_holds_it_back_but_not_who(engine: Engine) -> None:
    role = f"dp_plain_{uuid4().hex[:8]}"
    with engine.begin() as conn:
        conn.exec_driver_sql(f"CREATE ROLE {role}")
        conn.exec_driver_sql(f"GRANT USAGE ON SCHEMA datapatterns TO {role}")
        conn.exec_driver_sql(f"GRANT SELECT ON SEQUENCE datapatterns.event_position TO {role}")
    try:
        with engine.connect() as late:
            write(late)
            with engine.begin() as conn:
                conn.exec_driver_sql(f"SET LOCAL ROLE {role}")
                [blocker] = store.blockers(conn)
                until = final_until(conn, store)
            with engine.begin() as conn:
                conn.exec_driver_sql(f"GRANT pg_read_all_stats TO {role}")
                conn.exec_driver_sql(f"SET LOCAL ROLE {role}")
                [named] = store.blockers(conn)
    finally:
        with engine.begin() as conn:
            conn.exec_driver_sql(f"DROP OWNED BY {role}")
            conn.exec_driver_sql(f"DROP ROLE {role}")

    assert (blocker.state, blocker.since, blocker.positions) == ("unknown", None, 1)
    assert blocker.query in {None, "<insufficient privilege>"}
    assert until is None
    assert (named.pid, named.state) == (blocker.pid, "idle in transaction")


def test_what_is_recorded_before_open_transactions_began_is_final(engine: Engine) -> None:
    with engine.begin() as conn:
        write(conn, "early")
    with engine.connect() as late:
        began = late.scalar(text("SELECT now()"))
        write(late, "late")
        with engine.begin() as conn:
            write(conn, "quick")
        with engine.begin() as conn:
            until = final_until(conn, store)
        late.commit()
    with engine.begin() as conn:
        after = final_until(conn, store)
        before = store.read_log(conn, matching=LogFilter(until=until)).events
        everything = store.read_log(conn, matching=LogFilter(until=after)).events

    assert until == began
    assert [event.stream.key for event in before] == ["early"]
    assert [event.stream.key for event in everything] == ["early", "late", "quick"]


def test_an_import_counts_from_when_it_has_taken_the_time_of_its_events(engine: Engine) -> None:
    """That is before it writes to any table of events or streams."""
    chunk = [ImportedEvent(StreamId("s", "a"), NewEvent("thing.happened", {}))]
    importing_engine = create_engine(engine.url)
    found = []

    @event.listens_for(importing_engine, "before_cursor_execute")
    def look(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "INSERT INTO datapatterns.stream" in statement:
            with engine.begin() as conn:
                found.append(final_until(conn, store))

    with importing_engine.begin() as conn:
        began = conn.scalar(text("SELECT now()"))
        store.import_events(conn, chunk, source="x", chunk=1)
    importing_engine.dispose()

    assert found == [began]


def test_while_a_transaction_is_prepared_nothing_is_final(engine: Engine) -> None:
    """An inner join with the sessions would call it final: that is the control."""
    with prepared(engine):
        with engine.begin() as conn:
            assert final_until(conn, store) is None
        with (
            statements_without(
                engine, "LEFT OUTER JOIN pg_catalog.pg_stat", instead="JOIN pg_catalog.pg_stat"
            ),
            engine.begin() as conn,
        ):
            assert final_until(conn, store) is not None
    with engine.begin() as conn:
        until = final_until(conn, store)

    assert until is not None
    assert until <= datetime.now(UTC)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_in_an_older_snapshot_nothing_can_be_told(engine: Engine, level: str) -> None:
    with (
        engine.connect().execution_options(isolation_level=level) as conn,
        pytest.raises(IsolationLevelError),
    ):
        final_until(conn, store)
