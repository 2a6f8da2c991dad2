"""Let stored rows follow what is pending: all that changed, a part computed anew, or the query."""

from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from datapatterns.change_log import Consumer, Snapshot, capture_changed, not_shown_by
from datapatterns.errors import ViewDiffersError
from datapatterns.materialized_view.creating import find_logs
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.identified import columns_compared_as_text
from datapatterns.materialized_view.maintenance import Logs
from datapatterns.materialized_view.meaning import under
from datapatterns.materialized_view.pending_changes import count_pending
from datapatterns.materialized_view.pricing import is_dearer_than_rebuild
from datapatterns.materialized_view.rebuilding import rebuild
from datapatterns.materialized_view.recomputing import Part, part_to_recompute
from datapatterns.materialized_view.records import ViewRecord
from datapatterns.materialized_view.strategy import Strategy
from datapatterns.materialized_view.within import Within

DEARER: Final = "so much has changed that running the query is cheaper"
OVERTAKEN: Final = "partitions came, went or changed meanwhile"


class Outcome(NamedTuple):
    """What became of the stored rows.

    Attributes:
        strategy: How it was done.
        pending_rows: How many changes were pending.
        rows_changed: How many stored rows were written or deleted.
        snapshot: What they show now, if it ``is_done``.
        partitions: Of how many partitions the rows were computed anew.
        reason: Why the query was run, if the view is not kept so.
        is_done: Whether they are up to date.
        is_whole: Whether the query was run for all of them.
    """

    strategy: Strategy
    pending_rows: int
    rows_changed: int
    snapshot: Snapshot
    partitions: int = 0
    reason: str | None = None
    is_done: bool = True
    is_whole: bool = True


def follow(
    conn: Connection, view: ViewDefinition, record: ViewRecord, consumer: Consumer
) -> Outcome:
    """Apply what is pending to the stored rows, or run the query where that does not do.

    In a transaction that holds the consumer, whose logs tell all.
    """
    if is_dearer_than_rebuild(conn, view, record, consumer.snapshot):
        pending = count_all_pending(conn, view, record, consumer.snapshot)
        return run_query(conn, view, record, pending, DEARER)
    logs = find_logs(view, record)
    outcome = _apply(conn, view, record, consumer, logs, Part())
    if outcome.is_done:
        return outcome
    # Perhaps no more than a partition was truncated.
    part = part_to_recompute(conn, record.maintenance, logs, consumer, schema=view.names.schema)
    if part.anew is not None:
        outcome = _apply(conn, view, record, consumer, logs, part)
    if outcome.is_done:
        return outcome
    return run_query(conn, view, record, outcome.pending_rows, part.obstacle or DEARER)


def follow_part(
    conn: Connection,
    view: ViewDefinition,
    record: ViewRecord,
    consumer: Consumer,
    asked: Within | None,
) -> Outcome:
    """Do as `follow` does, and compute anew what logs do not tell of, or what is asked for."""
    logs = find_logs(view, record)
    part = part_to_recompute(
        conn, record.maintenance, logs, consumer, schema=view.names.schema, asked=asked
    )
    if part.obstacle is None:
        outcome = _apply(conn, view, record, consumer, logs, part)
        if outcome.is_done:
            return outcome
    pending = count_all_pending(conn, view, record, consumer.snapshot)
    return run_query(conn, view, record, pending, part.obstacle or DEARER)


def run_query(
    conn: Connection,
    view: ViewDefinition,
    record: ViewRecord,
    pending: int,
    reason: str | None = None,
) -> Outcome:
    """Make the stored rows those of the query, all of them.

    Args:
        conn: A connection whose transaction holds the consumer.
        view: The view.
        record: What is known of it.
        pending: How many changes are pending.
        reason: Why, if it is kept in another way.
    """
    statement = rebuild(
        record.maintenance.fresh(),
        view.names,
        record.maintenance.stored,
        compared_as_text=columns_compared_as_text(conn, view.names, record.maintenance),
    )
    with under(conn, record.settings):
        found = conn.execute(statement).one()
    changed = found.deleted + found.inserted
    if record.explanation.strategy is Strategy.REBUILD:
        reason = None  # that is how it is kept
    return Outcome(Strategy.REBUILD, pending, changed, found.snapshot, reason=reason)


def count_all_pending(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> int:
    """Return how many changes ``since`` does not show."""
    counted = count_pending(
        view.names.schema, record.logs.values(), lambda xid: not_shown_by(since, xid)
    )
    return conn.execute(select(counted)).scalar_one()


def _apply(
    conn: Connection,
    view: ViewDefinition,
    record: ViewRecord,
    consumer: Consumer,
    logs: Logs,
    part: Part,
) -> Outcome:
    try:
        with under(conn, record.settings):
            applied = record.maintenance.apply(conn, logs, consumer.snapshot, part.anew)
    except ViewDiffersError:
        # A partition may have gone since the lock was taken, and its rows with it.
        if not conn.scalar(select(capture_changed(consumer.name, schema=view.names.schema))):
            raise
        return run_query(conn, view, record, 0, OVERTAKEN)
    strategy = record.explanation.strategy
    return Outcome(
        strategy,
        applied.pending_rows,
        applied.rows_changed,
        applied.snapshot,
        partitions=part.partitions,
        is_done=applied.is_done,
        is_whole=False,
    )
