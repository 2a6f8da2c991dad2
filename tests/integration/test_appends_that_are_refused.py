"""What could not be read back is refused before it is sent, what is no event by the database."""

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import EventDataError
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    NewEvent,
)
from tests.fixtures.carts import CART, ItemAdded, added, store


@pytest.mark.parametrize("count", [0, 10_001])
def test_too_few_or_too_many_events_are_refused_before_anything_is_sent(
    conn: Connection, count: int
) -> None:
    with pytest.raises(ValueError, match="append"):
        store.append(conn, CART, added(count), expected_version=ANY)

    assert not conn.in_transaction()


def test_a_negative_version_is_refused(conn: Connection) -> None:
    with pytest.raises(ValueError, match="no version"):
        store.append(conn, CART, added(), expected_version=-1)


def test_data_that_could_not_be_read_back_is_refused_before_anything_is_sent(
    conn: Connection,
) -> None:
    with pytest.raises(EventDataError):
        store.append(conn, CART, [NewEvent("a", {"x": "\0"})], expected_version=ANY)

    assert not conn.in_transaction()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE datapatterns.event SET data = '{}'",
        "DELETE FROM datapatterns.event",
        "TRUNCATE datapatterns.event",
    ],
)
def test_events_are_append_only(conn: Connection, change: str) -> None:
    store.append(conn, CART, added(), expected_version=NEW_STREAM)

    with pytest.raises(DBAPIError, match="append-only"):
        conn.execute(text(change))


@pytest.mark.parametrize(
    ("version", "data", "rows"), [(0, "{}", 1), (1, "{}", 2), (None, "{}", 1), (1, None, 1)]
)
def test_the_database_refuses_rows_that_are_no_events(
    conn: Connection, version: int | None, data: str | None, rows: int
) -> None:
    statement = text(
        "INSERT INTO datapatterns.event (stream_id, version, at, event_id, type_id, data)"
        " SELECT 1, :version, now(), gen_random_uuid(), 1, CAST(:data AS jsonb)"
        " FROM generate_series(1, :rows)"
    )

    with pytest.raises(DBAPIError):
        conn.execute(statement, {"version": version, "data": data, "rows": rows})


def test_an_event_that_does_not_fit_its_class_is_refused_before_anything_is_sent(
    conn: Connection,
) -> None:
    wrong = ItemAdded("egg", "six")  # type: ignore[arg-type] # the point

    with pytest.raises(EventDataError, match="quantity"):
        store.append(conn, CART, [wrong], expected_version=NEW_STREAM)

    assert store.read_stream(conn, CART) == []


def test_metadata_counts_as_data_of_an_append(conn: Connection) -> None:
    with pytest.raises(ValueError, match="too many for one append"):
        store.append(
            conn, CART, added(100), expected_version=ANY, metadata={"much": "x" * 1_000_000}
        )


@pytest.mark.parametrize("count", [1, 3])
def test_a_trigger_that_swallows_events_fails_the_append(conn: Connection, count: int) -> None:
    conn.execute(
        text(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF NEW.version = 1 THEN RETURN NULL; END IF; RETURN NEW; END $$;"
            "CREATE TRIGGER swallow BEFORE INSERT ON datapatterns.event"
            " FOR EACH ROW EXECUTE FUNCTION swallow()"
        )
    )
    with pytest.raises(DBAPIError, match="kept events from being written"), conn.begin_nested():
        store.append(conn, CART, added(count), expected_version=NEW_STREAM)
    assert store.read_stream(conn, CART) == []
