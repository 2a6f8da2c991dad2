"""Changes as a set: each is in exactly one difference of two snapshots (L1)."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Design, Stage, Tasks

TABLES = """
CREATE TABLE change (data text NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE TABLE consumer (snapshot pg_snapshot NOT NULL);
CREATE TABLE consumed (data text NOT NULL);
"""
SET_UP = """
DELETE FROM change; DELETE FROM consumed; DELETE FROM consumer;
INSERT INTO consumer VALUES (pg_current_snapshot())
"""

CHANGE = text("INSERT INTO change (data) VALUES (:data)")
HOLD = text("SELECT snapshot::text FROM consumer FOR UPDATE")
UNSEEN = text(
    "SELECT data FROM change WHERE NOT pg_visible_in_snapshot(xid, CAST(:since AS pg_snapshot))"
)
NOW = text("SELECT pg_current_snapshot()::text")
UNSEEN_AND_NOW = text(
    """
    WITH now AS (SELECT pg_current_snapshot()::text AS snapshot)
    SELECT now.snapshot, change.data FROM now LEFT JOIN change
    ON NOT pg_visible_in_snapshot(change.xid, CAST(:since AS pg_snapshot))
    """
)
CONSUME = text("INSERT INTO consumed VALUES (:data)")
ADVANCE = text("UPDATE consumer SET snapshot = CAST(:snapshot AS pg_snapshot)")


def change(stage: Stage, data: str, *, xid_first: bool) -> None:
    with stage.engine.begin() as conn:
        if xid_first:
            conn.execute(text("SELECT pg_current_xact_id()"))
        conn.execute(CHANGE, {"data": data})


def consume(stage: Stage, *, statements: int) -> None:
    with stage.engine.begin() as conn:
        since = conn.execute(HOLD).scalar_one()
        if statements == 1:
            rows = conn.execute(UNSEEN_AND_NOW, {"since": since}).all()
            snapshot, found = rows[0].snapshot, [row.data for row in rows if row.data is not None]
        else:  # the second sees more than the first gave
            found = list(conn.scalars(UNSEEN, {"since": since}))
            snapshot = conn.execute(NOW).scalar_one()
        for data in found:
            conn.execute(CONSUME, {"data": data})
        conn.execute(ADVANCE, {"snapshot": snapshot})


def _meeting(
    *, statements: int = 1, xid_first: bool = False, consumers: int = 1
) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        writers = {"one": "a", "two": "b"} if consumers == 1 else {"one": "a"}
        return {
            name: partial(change, stage, data, xid_first=xid_first)
            for name, data in writers.items()
        } | {
            f"consumer{n}": partial(consume, stage, statements=statements) for n in range(consumers)
        }

    return tasks


def _everything_once(statements: int) -> Callable[[Stage, Outcome], None]:
    def check(stage: Stage, _outcome: Outcome) -> None:
        for _ in range(2):
            consume(stage, statements=statements)
        changes = stage.column("SELECT data FROM change")
        consumed = stage.column("SELECT data FROM consumed")
        assert changes == consumed, f"the changes are {changes}, consumed were {consumed}"

    return check


DESIGNS = [
    Design(
        "rows and snapshot of two statements",
        "L1",
        SET_UP,
        _meeting(statements=2),
        _everything_once(2),
        wrong=True,
    ),
    Design(
        "rows and snapshot of one statement",
        "L1",
        SET_UP,
        _meeting(),
        _everything_once(1),
        everyday_preemptions=1,
    ),
    Design(
        "one statement, transaction id drawn early",
        "L1",
        SET_UP,
        _meeting(xid_first=True),
        _everything_once(1),
        everyday_preemptions=1,
    ),
    Design(
        "one statement, 2 consumers",
        "L1",
        SET_UP,
        _meeting(xid_first=True, consumers=2),
        _everything_once(1),
        everyday_preemptions=1,
    ),
]
