"""What a consumer has not consumed yet."""

from typing import Any

from sqlalchemy import ARRAY, Boolean, ColumnElement, any_, bindparam, func, literal, or_, select

from datapatterns.change_log.schema import PgSnapshot, Xid8, change_log_tables
from datapatterns.change_log.snapshots import XID_MAX, Snapshot, Xid


def not_shown_by(snapshot: Snapshot, xid: ColumnElement[Xid]) -> ColumnElement[bool]:
    """Return whether ``snapshot`` does not show what the transaction ``xid`` did.

    The two halves are index scans. Comparing with the snapshot's ``xmin`` and filtering by
    ``pg_visible_in_snapshot`` would read again all that was consumed since the oldest writer
    began.
    """
    return _unseen(xid, literal(snapshot.xmax, Xid8), literal([*snapshot.in_progress], ARRAY(Xid8)))


def shown_by(snapshot: Snapshot, xid: ColumnElement[Xid]) -> ColumnElement[bool]:
    """Return whether ``snapshot`` shows what the transaction ``xid`` committed.

    For who reads several logs by a statement each, up to one moment.
    """
    return func.pg_visible_in_snapshot(xid, literal(snapshot, PgSnapshot), type_=Boolean())


def not_shown_by_parameters(xid: ColumnElement[Xid]) -> ColumnElement[bool]:
    """Return the same of a snapshot that is given when the statement is executed.

    So a long statement is put together once; see `snapshot_parameters`.
    """
    return _unseen(
        xid, bindparam("consumed_xmax", type_=Xid8), bindparam("consumed_xip", type_=ARRAY(Xid8))
    )


def snapshot_parameters(snapshot: Snapshot) -> dict[str, object]:
    """Return what `not_shown_by_parameters` needs."""
    return {"consumed_xmax": snapshot.xmax, "consumed_xip": [*snapshot.in_progress]}


def pending_for(consumer: str, xid: ColumnElement[Xid], *, schema: str) -> ColumnElement[bool]:
    """Return whether ``consumer`` has yet to consume what ``xid`` did, by its stored snapshot.

    One statement then reads the snapshot and the changes; nothing can move in between.
    """
    consumers = change_log_tables(schema).consumers
    stored, wanted = consumers.c.snapshot, consumers.c.name == consumer
    xmax = select(func.pg_snapshot_xmax(stored, type_=Xid8)).where(wanted).scalar_subquery()
    in_progress = select(func.pg_snapshot_xip(stored, type_=Xid8)).where(wanted).scalar_subquery()
    return _unseen(xid, xmax, func.array(in_progress, type_=ARRAY(Xid8)))


def _unseen(
    xid: ColumnElement[Xid], xmax: ColumnElement[Any], in_progress: ColumnElement[Any]
) -> ColumnElement[bool]:
    # The upper bound is the planner's: an open range over a value it does not know is taken for
    # a third of the log, a closed one for half a percent.
    return or_(xid.between(xmax, literal(XID_MAX, Xid8)), xid == any_(in_progress))
