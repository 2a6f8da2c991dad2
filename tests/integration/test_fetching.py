"""Rows that the driver's own cursor fetches come through SQLAlchemy's errors and transactions."""

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from datapatterns.event_sourcing import ANY, EventStore, NewEvent, StreamId
from datapatterns.sql.discretion import discreet
from datapatterns.sql.fetching import fetch_rows
from tests.fixtures.colours import Call

store = EventStore()
STREAM = StreamId("s", "ß")


def test_a_statement_that_fails_is_told_to_the_listeners_of_the_engine(
    call: Call,
) -> None:
    told: list[ExceptionContext] = []

    def tell(context: ExceptionContext) -> None:
        told.append(context)

    event.listen(Engine, "handle_error", tell)
    try:
        with pytest.raises(ProgrammingError) as failed:
            call(fetch_rows, "SELECT no_such_column", {})
    finally:
        event.remove(Engine, "handle_error", tell)

    assert len(told) == 1
    assert failed.value.orig is told[0].original_exception
    assert "no_such_column" in str(failed.value.statement)


def test_an_error_does_not_quote_rows_where_the_engine_is_discreet(engine: Engine) -> None:
    other = discreet(create_engine(engine.url))
    with other.connect() as conn, pytest.raises(DBAPIError) as failed:
        fetch_rows(conn, "SELECT * FROM json_populate_record(NULL::pg_class, '{\"oid\": 1')", {})
    other.dispose()

    assert "DETAIL" not in str(failed.value)


def test_a_session_that_was_killed_is_given_up(engine: Engine) -> None:
    with engine.connect() as conn:
        pid = conn.scalar(text("SELECT pg_backend_pid()"))
        with engine.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

        with pytest.raises(OperationalError) as failed:
            fetch_rows(conn, "SELECT 1", {})

        assert failed.value.connection_invalidated
        assert conn.invalidated


def test_a_transaction_is_begun_as_by_any_statement(engine: Engine) -> None:
    with engine.connect() as conn:
        assert fetch_rows(conn, "SELECT %(n)s::int", {"n": 7}) == [(7,)]

        assert conn.in_transaction()
        store.append(conn, STREAM, [NewEvent("thing.happened", {})], expected_version=ANY)
        conn.commit()
    with engine.begin() as conn:
        assert len(store.read_stream(conn, STREAM)) == 1


def test_json_is_read_where_the_session_speaks_another_encoding(engine: Engine) -> None:
    latin = create_engine(engine.url, connect_args={"client_encoding": "latin1"})
    with latin.begin() as conn:
        events = [NewEvent("thing.happened", {"name": "Süß"}, metadata={"by": "Änne"})]
        store.append(conn, STREAM, events, expected_version=ANY)
    with latin.begin() as conn:
        [recorded] = store.read_log(conn).events
    latin.dispose()

    assert recorded.stream == STREAM
    assert (recorded.data, recorded.metadata) == ({"name": "Süß"}, {"by": "Änne"})
