"""An index in another database than its rows: dangling entries, but no missing ones (I4)."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import TextClause, text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import CRASHES, Design, Stage, Tasks

TABLES = """
CREATE TABLE person (id int PRIMARY KEY, email text NOT NULL);
CREATE TABLE person_by_email (email text PRIMARY KEY, id int NOT NULL);
"""
SET_UP = "DELETE FROM person; DELETE FROM person_by_email"

ENTITY = text("INSERT INTO person VALUES (1, 'ann@example.org')")
ENTRY = text("INSERT INTO person_by_email VALUES ('ann@example.org', 1)")


def register(stage: Stage, first: TextClause, second: TextClause) -> None:
    """Write the two in transactions of their own, as across shards."""
    with stage.engine.connect() as conn:
        for statement in (first, second):
            with conn.begin():
                conn.execute(statement)


def _registering(first: TextClause, second: TextClause) -> Callable[[Stage], Tasks]:
    return lambda stage: {"writer": partial(register, stage, first, second)}


def _everybody_is_found(stage: Stage, _outcome: Outcome) -> None:
    missing = stage.column(
        "SELECT id FROM person LEFT JOIN person_by_email USING (id, email)"
        " WHERE person_by_email.id IS NULL"
    )
    assert not missing, f"not to be found by their address: {missing}"


DESIGNS = [
    Design(
        "entity first, crash",
        "I4",
        SET_UP,
        _registering(ENTITY, ENTRY),
        _everybody_is_found,
        wrong=True,
        search=CRASHES,
    ),
    Design(
        "index first, crash",
        "I4",
        SET_UP,
        _registering(ENTRY, ENTITY),
        _everybody_is_found,
        search=CRASHES,
    ),
]
