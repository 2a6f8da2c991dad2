"""Changes as a set: each is in exactly one difference of two snapshots (L1)."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from sqlalchemy import text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Design, Stage, Tasks

TABLES = """
CREATE TABLE change (
    id bigint GENERATED ALWAYS AS IDENTITY, data text NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE TABLE consumer (snapshot pg_snapshot NOT NULL, last_id bigint NOT NULL DEFAULT 0);
CREATE TABLE consumed (data text NOT NULL);
"""
SET_UP = """
DELETE FROM change; DELETE FROM consumed; DELETE FROM consumer;
INSERT INTO consumer VALUES (pg_current_snapshot())
"""

Consume: TypeAlias = Callable[[Stage], None]

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
HOLD_BY_ID = text("SELECT last_id FROM consumer FOR UPDATE")
BEYOND = text("SELECT id, data FROM change WHERE id > :last_id ORDER BY id")
ADVANCE_BY_ID = text("UPDATE consumer SET last_id = :last_id")
HOLD_AND_CONSUME = text(
    """
    WITH held AS MATERIALIZED (SELECT FROM consumer FOR UPDATE), applied AS (
        INSERT INTO consumed SELECT data FROM change WHERE (SELECT count(*) FROM held) = 1
        AND NOT pg_visible_in_snapshot(xid, (SELECT snapshot FROM consumer)) RETURNING 1)
    UPDATE consumer SET snapshot = pg_current_snapshot() WHERE (SELECT count(*) FROM applied) >= 0
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


def consume_by_id(stage: Stage) -> None:
    with stage.engine.begin() as conn:
        last_id = conn.execute(HOLD_BY_ID).scalar_one()
        for row in conn.execute(BEYOND, {"last_id": last_id}).all():
            conn.execute(CONSUME, {"data": row.data})
            last_id = row.id  # one that was drawn before, and commits later, is never looked at
        conn.execute(ADVANCE_BY_ID, {"last_id": last_id})


def consume_with_the_lock(stage: Stage) -> None:
    with stage.engine.begin() as conn:
        conn.execute(HOLD_AND_CONSUME)  # whoever waits in it, has its snapshot already


def _meeting(
    consume: Consume, *, xid_first: bool = False, consumers: int = 1
) -> Callable[[Stage], Tasks]:
    def tasks(stage: Stage) -> Tasks:
        writers = {"one": "a", "two": "b"} if consumers == 1 else {"one": "a"}
        return {
            name: partial(change, stage, data, xid_first=xid_first)
            for name, data in writers.items()
        } | {f"consumer{n}": partial(consume, stage) for n in range(consumers)}

    return tasks


def _everything_once(consume: Consume) -> Callable[[Stage, Outcome], None]:
    def check(stage: Stage, _outcome: Outcome) -> None:
        for _ in range(2):
            consume(stage)
        changes = stage.column("SELECT data FROM change")
        consumed = stage.column("SELECT data FROM consumed")
        assert changes == consumed, f"the changes are {changes}, consumed were {consumed}"

    return check


_RIGHTLY = partial(consume, statements=1)

DESIGNS = [
    Design(
        "rows beyond the last id",
        "L1",
        SET_UP,
        _meeting(consume_by_id),
        _everything_once(consume_by_id),
        wrong=True,
    ),
    Design(
        "locked by the statement that applies, 2 consumers",
        "L1",
        SET_UP,
        _meeting(consume_with_the_lock, consumers=2),
        _everything_once(consume_with_the_lock),
        wrong=True,
    ),
    Design(
        "rows and snapshot of two statements",
        "L1",
        SET_UP,
        _meeting(partial(consume, statements=2)),
        _everything_once(partial(consume, statements=2)),
        wrong=True,
    ),
    Design(
        "rows and snapshot of one statement",
        "L1",
        SET_UP,
        _meeting(_RIGHTLY),
        _everything_once(_RIGHTLY),
        everyday_preemptions=1,
    ),
    Design(
        "one statement, transaction id drawn early",
        "L1",
        SET_UP,
        _meeting(_RIGHTLY, xid_first=True),
        _everything_once(_RIGHTLY),
        everyday_preemptions=1,
    ),
    Design(
        "one statement, 2 consumers",
        "L1",
        SET_UP,
        _meeting(_RIGHTLY, xid_first=True, consumers=2),
        _everything_once(_RIGHTLY),
        everyday_preemptions=1,
    ),
]
