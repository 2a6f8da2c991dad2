"""Events appended by several: one wins each version (E3), one command is one event (E4)."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, Engine, TextClause, text
from sqlalchemy.exc import IntegrityError, OperationalError

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import LOST_COMMITS, Design, Stage, Tasks

TABLES = """
CREATE TABLE event (
  position bigserial PRIMARY KEY,
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  data text NOT NULL,
  command text UNIQUE
);
CREATE TABLE loose_event (version int NOT NULL);
CREATE TABLE dense_event (version int NOT NULL UNIQUE);
"""
SET_UP = "DELETE FROM event; DELETE FROM loose_event; DELETE FROM dense_event"

INSERT = text("INSERT INTO event (data) VALUES (:data)")
LAST_POSITION = text("SELECT coalesce(pg_sequence_last_value('event_position_seq'), 0)")
FENCES = 4243
"""The first number of the advisory locks that are the fences."""


# -- appending for readers of the log: see projection.py -------------------------------------------


def append_plain(conn: Connection, data: str) -> None:
    conn.execute(INSERT, {"data": data})


def append_one_at_a_time(conn: Connection, data: str) -> None:
    conn.execute(text("SELECT pg_advisory_xact_lock(4242)"))
    conn.execute(INSERT, {"data": data})


def append_after_another_write(conn: Connection, data: str) -> None:
    """As usual: the stream's row is written first, which draws the transaction's id."""
    conn.execute(text("SELECT pg_current_xact_id()"))
    conn.execute(INSERT, {"data": data})


def append_fenced(conn: Connection, data: str) -> None:
    """Raise a fence below the position that will be drawn; it falls with the transaction."""
    _raise_fence(conn)
    conn.execute(INSERT, {"data": data})


def append_fenced_too_late(conn: Connection, data: str) -> None:
    conn.execute(INSERT, {"data": data})
    _raise_fence(conn)


def _raise_fence(conn: Connection) -> None:
    # Two statements, so that the explorer gets between them; in production they are one call.
    low = conn.execute(LAST_POSITION).scalar_one()
    conn.execute(
        text("SELECT pg_advisory_xact_lock_shared(:fences, :low)"),
        {"fences": FENCES, "low": low},
    )


# -- expected versions -----------------------------------------------------------------------------

LOOSE = (
    text("SELECT coalesce(max(version), 0) FROM loose_event"),
    text("INSERT INTO loose_event VALUES (:version)"),
)
DENSE = (
    text("SELECT coalesce(max(version), 0) FROM dense_event"),
    text("INSERT INTO dense_event VALUES (:version)"),
)


def append_next(engine: Engine, head: TextClause, insert: TextClause) -> None:
    with engine.begin() as conn:
        version = conn.execute(head).scalar_one()
        conn.execute(insert, {"version": version + 1})


def _appending_next(statements: tuple[TextClause, TextClause]) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        return {name: partial(append_next, stage.engine, *statements) for name in ("one", "two")}

    return tasks


def _versions_are_dense(table: str) -> Callable[[Stage, Outcome], None]:
    def check(stage: Stage, outcome: Outcome) -> None:
        versions, done = stage.column(f"SELECT version FROM {table}"), len(outcome.results)  # noqa: S608 -- one of two names
        assert versions == list(range(1, done + 1)), (
            f"{done} appends were acknowledged, and the versions are {versions}"
        )

    return check


# -- outcomes unknown ------------------------------------------------------------------------------


def append_until_acknowledged(engine: Engine, command: str | None) -> None:
    """Try again while nobody knows whether the COMMIT got through."""
    insert = text("INSERT INTO event (data, command) VALUES ('a', :command) ON CONFLICT DO NOTHING")
    for _ in range(3):
        try:
            with engine.begin() as conn:
                conn.execute(insert, {"command": command})
        except OperationalError:
            continue
        return


def _appending_until_acknowledged(command: str | None) -> Callable[[Stage], Tasks]:
    return lambda stage: {"client": partial(append_until_acknowledged, stage.engine, command)}


def _one_command_is_one_event(stage: Stage, _outcome: Outcome) -> None:
    (count,) = stage.one("SELECT count(*) FROM event")
    assert count == 1, f"one command, {count} events"


DESIGNS = [
    Design(
        "append at head + 1, nothing unique",
        "E3",
        SET_UP,
        _appending_next(LOOSE),
        _versions_are_dense("loose_event"),
        wrong=True,
    ),
    Design(
        "append at head + 1, versions unique",
        "E3",
        SET_UP,
        _appending_next(DENSE),
        _versions_are_dense("dense_event"),
        allowed_errors=(IntegrityError,),
    ),
    Design(
        "try again after a lost COMMIT, no command id",
        "E4",
        SET_UP,
        _appending_until_acknowledged(None),
        _one_command_is_one_event,
        wrong=True,
        search=LOST_COMMITS,
    ),
    Design(
        "try again after a lost COMMIT, command id",
        "E4",
        SET_UP,
        _appending_until_acknowledged("pay"),
        _one_command_is_one_event,
        search=LOST_COMMITS,
    ),
]
