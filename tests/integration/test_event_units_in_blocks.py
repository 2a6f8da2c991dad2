# ruff: noqa: PT012 -- what is undone takes more than one statement
"""Units of work on a connection: what a block has collected is appended at its end."""

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import (
    IsolationLevelError,
)
from datapatterns.event_sourcing import (
    NEW_STREAM,
)
from tests.fixtures.event_units import A, B, Till, added, keys, store, watch


def test_a_block_on_a_connection_appends_at_its_end(engine: Engine) -> None:
    sent = watch(engine)
    with engine.begin() as conn:
        with store.unit(conn) as unit:
            unit.append(B, added(), expected_version=NEW_STREAM)
            unit.append(A, added(), expected_version=NEW_STREAM)
            unit.load(Till, "1").pay(5)
            sent.clear()
            conn.execute(text("CREATE TABLE customer (id bigint)"))
        assert unit.position is not None
        assert len(unit.appended) == 3

    assert sent == ["CREATE", "append", "COMMIT"]
    assert keys(engine) == ["a", "b", "1"]


def test_a_block_that_fails_appends_nothing(conn: Connection) -> None:
    with pytest.raises(KeyError), store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
        raise KeyError
    with store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
        conn.rollback()
        unit.append(B, added(), expected_version=NEW_STREAM)

    assert store.read_stream(conn, A) == []
    assert len(store.read_stream(conn, B)) == 1


def test_a_commit_inside_a_block_takes_what_was_collected_along(engine: Engine) -> None:
    with engine.connect() as conn, store.unit(conn) as unit:
        conn.execute(text("SELECT 1"))
        unit.append(A, added(), expected_version=NEW_STREAM)
        conn.commit()
        unit.append(B, added(), expected_version=NEW_STREAM)

    assert keys(engine) == ["a"]  # the second transaction was never committed


def test_a_block_in_autocommit_mode_is_refused(engine: Engine) -> None:
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        pytest.raises(IsolationLevelError),
        store.unit(conn) as unit,
    ):
        unit.append(A, added(), expected_version=NEW_STREAM)

    assert keys(engine) == []


def test_a_unit_whose_block_has_ended_takes_nothing(conn: Connection) -> None:
    with store.unit(conn) as unit:
        unit.append(A, added(), expected_version=NEW_STREAM)
    for use in (
        lambda: unit.append(B, added(), expected_version=NEW_STREAM),
        lambda: unit.load(Till, "7"),
        lambda: unit.save(Till("7")),
    ):
        with pytest.raises(ValueError, match="has ended"):
            use()
    assert unit.appended[A].version == 1
