"""Readers of the log that skip nothing (E6) and apply nothing twice (P1)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import (
    CRASHES_NARROWLY,
    DEFAULT_SEARCH,
    Design,
    Search,
    Stage,
    Tasks,
)
from tests.interleavings.designs.event_log import (
    FENCES,
    LAST_POSITION,
    append_after_another_write,
    append_fenced,
    append_fenced_too_late,
    append_one_at_a_time,
    append_plain,
)

TABLES = """
CREATE TABLE checkpoint (position bigint NOT NULL, xid xid8 NOT NULL);
CREATE TABLE applied (data text NOT NULL);
"""
# Positions go on from one schedule to the next: so does the first checkpoint.
SET_UP = """
DELETE FROM event; DELETE FROM applied; DELETE FROM checkpoint;
INSERT INTO checkpoint
SELECT coalesce(pg_sequence_last_value('event_position_seq'), 0), pg_current_xact_id()
"""

CHECKPOINT = text("SELECT position, xid::text FROM checkpoint")
CHECKPOINT_FOR_UPDATE = text("SELECT position, xid::text FROM checkpoint FOR UPDATE")
APPLY = text("INSERT INTO applied VALUES (:data)")
ADVANCE = text("UPDATE checkpoint SET position = :position, xid = CAST(:xid AS xid8)")

BY_POSITION = text(
    "SELECT position, data, xid::text FROM event WHERE position > :position ORDER BY position"
)
BY_POSITION_BELOW_XMIN = text(
    "SELECT position, data, xid::text FROM event WHERE position > :position"
    " AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY position"
)
BY_XID_BELOW_XMIN = text(
    "SELECT position, data, xid::text FROM event"
    " WHERE (xid, position) > (CAST(:xid AS xid8), :position)"
    " AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, position"
)
LOWEST_FENCE = text(
    "SELECT min(objid::bigint) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2"
    " AND classid = CAST(:fences AS oid)"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

Project = Callable[[Stage], None]


def project(stage: Stage, *, read: TextClause) -> None:
    """Commit effects and checkpoint together."""
    with stage.engine.begin() as conn:
        position, xid = conn.execute(CHECKPOINT_FOR_UPDATE).one()
        found = conn.execute(read, {"position": position, "xid": xid}).all()
        _apply(conn, found)
        _advance(conn, found)


def project_in_two_transactions(stage: Stage, *, read: TextClause) -> None:
    """Effects first, then the checkpoint: between the two is a crash."""
    with stage.engine.connect() as conn:
        with conn.begin():
            position, xid = conn.execute(CHECKPOINT).one()
            found = conn.execute(read, {"position": position, "xid": xid}).all()
            _apply(conn, found)
        with conn.begin():
            _advance(conn, found)


def project_up_to_the_fence(stage: Stage, *, rows_first: bool) -> None:
    """Read no further than the lowest fence that stood after the last position was asked for."""
    with stage.engine.begin() as conn:
        position, xid = conn.execute(CHECKPOINT_FOR_UPDATE).one()
        values = {"position": position, "xid": xid}
        # Wrong if they come first: they may lack what committed before the mark was read.
        early = conn.execute(BY_POSITION, values).all() if rows_first else None
        mark = _high_water_mark(conn)
        rows = conn.execute(BY_POSITION, values).all() if early is None else early
        _apply(conn, [row for row in rows if row.position <= mark])
        if mark > position:
            conn.execute(ADVANCE, {"position": mark, "xid": xid})


def _high_water_mark(conn: Connection) -> int:
    last = conn.execute(LAST_POSITION).scalar_one()
    lowest = conn.scalar(LOWEST_FENCE, {"fences": FENCES})
    return int(last if lowest is None else min(last, lowest))


def _apply(conn: Connection, rows: Sequence[Row[Any]]) -> None:
    for row in rows:
        conn.execute(APPLY, {"data": row.data})


def _advance(conn: Connection, rows: Sequence[Row[Any]]) -> None:
    if rows:
        conn.execute(ADVANCE, {"position": rows[-1].position, "xid": rows[-1].xid})


# -- who meets -------------------------------------------------------------------------------------


def _design(
    name: str,
    append: Callable[[Connection, str], None],
    project: Project,
    *,
    wrong: bool = False,
    search: Search = DEFAULT_SEARCH,
) -> Design:
    def tasks(stage: Stage) -> Tasks:
        def appending(data: str) -> None:
            with stage.engine.begin() as conn:
                append(conn, data)

        return {
            "one": partial(appending, "a"),
            "two": partial(appending, "b"),
            "projection": partial(project, stage),
        }

    def check(stage: Stage, _outcome: Outcome) -> None:
        for _ in range(3):
            project(stage)
        events, applied = (
            stage.column("SELECT data FROM event"),
            stage.column("SELECT data FROM applied"),
        )
        assert events == applied, f"the events are {events}, applied were {applied}"

    return Design(
        name,
        "E6 P1",
        SET_UP,
        tasks,
        check,
        wrong=wrong,
        search=search,
        # With a crash at every gate, one preemption makes 500 schedules of 50.
        everyday_preemptions=0 if search.faults else 1,
    )


DESIGNS = [
    _design(
        "position > checkpoint",
        append_plain,
        partial(project, read=BY_POSITION),
        wrong=True,
    ),
    _design(
        "position > checkpoint, xid < xmin, by position",
        append_after_another_write,
        partial(project, read=BY_POSITION_BELOW_XMIN),
        wrong=True,
    ),
    _design(
        "xid < xmin, by xid and position",
        append_after_another_write,
        partial(project, read=BY_XID_BELOW_XMIN),
    ),
    _design(
        "appended one at a time",
        append_one_at_a_time,
        partial(project, read=BY_POSITION),
    ),
    _design(
        "effect and checkpoint in two transactions, no crash",
        append_one_at_a_time,
        partial(project_in_two_transactions, read=BY_POSITION),
    ),
    _design(
        "effect and checkpoint in two transactions, crash",
        append_one_at_a_time,
        partial(project_in_two_transactions, read=BY_POSITION),
        wrong=True,
        search=CRASHES_NARROWLY,
    ),
    _design(
        "effect and checkpoint in one transaction, crash",
        append_one_at_a_time,
        partial(project, read=BY_POSITION),
        search=CRASHES_NARROWLY,
    ),
    _design(
        "position fence",
        append_fenced,
        partial(project_up_to_the_fence, rows_first=False),
    ),
    _design(
        "position drawn before the fence is raised",
        append_fenced_too_late,
        partial(project_up_to_the_fence, rows_first=False),
        wrong=True,
    ),
    _design(
        "rows read before the mark",
        append_fenced,
        partial(project_up_to_the_fence, rows_first=True),
        wrong=True,
    ),
]
