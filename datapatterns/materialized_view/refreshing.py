"""Bring stored rows up to date, and the consumer with them, in one transaction."""

from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from datapatterns.change_log import ChangeLog, Consumer, Snapshot, current_snapshot, not_shown_by
from datapatterns.clock import Clock
from datapatterns.errors import (
    ConsumerMissingError,
    ViewChangedError,
    ViewDiffersError,
    ViewMissingError,
    ViewNotPopulatedError,
)
from datapatterns.failpoints import failpoint
from datapatterns.materialized_view import counting
from datapatterns.materialized_view.algebra import CountingPlan
from datapatterns.materialized_view.creating import (
    columns_compared_as_text,
    fresh_rows,
    log_names,
    require_same_names,
    stored_columns,
)
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.freshness import pending_rows
from datapatterns.materialized_view.locking import WRITING, hold_stored
from datapatterns.materialized_view.rebuilding import rebuild
from datapatterns.materialized_view.records import ViewRecord, read_record, record_duration
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.strategy import Strategy


class _Outcome(NamedTuple):
    strategy: Strategy
    pending_rows: int
    rows_changed: int
    snapshot: Snapshot


def refresh_view(
    conn: Connection, view: ViewDefinition, *, skip_locked: bool, clock: Clock
) -> RefreshReport | None:
    """Take in what is pending; None if ``skip_locked`` and somebody else is at it."""
    consumer = _locked(conn, view, skip_locked=skip_locked)
    return None if consumer is None else bring_up_to_date(conn, view, consumer, clock=clock)


def rebuild_view(conn: Connection, view: ViewDefinition, *, clock: Clock) -> RefreshReport:
    """Make the stored rows what the query gives, whatever they are."""
    started = clock.monotonic()
    consumer = _locked(conn, view)
    record = read_record(conn, view.names, view.query)
    require_same_names(conn, view, record)
    if record.explanation.strategy is Strategy.COUNTING and view.plan is not None:
        log_names(conn, view, view.plan, record)
    pending = 0
    if consumer is not None and consumer.populated:
        pending = _count_pending(conn, view, record, consumer.snapshot)[0]
    outcome = _rebuild(conn, view, record.explanation.strategy, pending)
    return _finish(conn, view, outcome, clock.monotonic() - started)


def bring_up_to_date(
    conn: Connection, view: ViewDefinition, consumer: Consumer, *, clock: Clock
) -> RefreshReport:
    """Take in what is pending for a consumer that this transaction has locked."""
    started = clock.monotonic()
    record = read_record(conn, view.names, view.query)
    if not consumer.populated:
        raise ViewNotPopulatedError(view.names.view)
    require_same_names(conn, view, record)
    follow = _count if record.explanation.strategy is Strategy.COUNTING else _rebuild_if_changed
    outcome = follow(conn, view, record, consumer.snapshot)
    return _finish(conn, view, outcome, clock.monotonic() - started)


def _locked(
    conn: Connection, view: ViewDefinition, *, skip_locked: bool = False
) -> Consumer | None:
    log = ChangeLog(view.names.schema)
    hold_stored(conn, view.names, WRITING)
    try:
        return log.lock_consumer(conn, view.names.consumer, skip_locked=skip_locked)
    except ConsumerMissingError as error:
        raise ViewMissingError(view.names.view) from error


def _count(conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot) -> _Outcome:
    if (plan := view.plan) is None:
        raise ViewChangedError(view.names.view)
    logs = log_names(conn, view, plan, record)
    found = conn.execute(counting.application(plan, view.names, logs, since)).one()
    if found.negative:
        raise ViewDiffersError(view.names.view)
    # A truncation names no rows; and nothing can be subtracted from NaN or infinity.
    if found.truncated or found.unsubtractable:
        return _rebuild(conn, view, Strategy.COUNTING, found.pending)
    # Without GROUP BY there is one group, which shows even if it is empty.
    if found.emptied and plan.keys:
        _sweep(conn, view, plan)
    return _Outcome(Strategy.COUNTING, found.pending, found.touched, found.snapshot)


def _rebuild_if_changed(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> _Outcome:
    pending, snapshot = _count_pending(conn, view, record, since)
    if pending == 0:
        return _Outcome(Strategy.REBUILD, 0, 0, snapshot)
    return _rebuild(conn, view, Strategy.REBUILD, pending)


def _rebuild(
    conn: Connection, view: ViewDefinition, stored_for: Strategy, pending: int
) -> _Outcome:
    statement = rebuild(
        fresh_rows(conn, view, stored_for),
        view.names,
        stored_columns(view, stored_for),
        compared_as_text=columns_compared_as_text(conn, view, stored_for),
    )
    found = conn.execute(statement).one()
    return _Outcome(Strategy.REBUILD, pending, found.deleted + found.inserted, found.snapshot)


def _sweep(conn: Connection, view: ViewDefinition, plan: CountingPlan) -> None:
    stored = counting.stored_table(plan, view.names)
    conn.execute(delete(stored).where(stored.c[counting.ROWS] == 0))


def _count_pending(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> tuple[int, Snapshot]:
    """Return how many changes are pending, and in which snapshot."""
    counted = pending_rows(
        view.names.schema, record.sources.values(), lambda xid: not_shown_by(since, xid)
    )
    row = conn.execute(select(counted, current_snapshot)).one()
    return row[0], row[1]


def _finish(
    conn: Connection, view: ViewDefinition, outcome: _Outcome, seconds: float
) -> RefreshReport:
    failpoint("view.rows-written")
    names = view.names
    ChangeLog(names.schema).advance_consumer(conn, names.consumer, outcome.snapshot)
    record_duration(conn, names, seconds)
    return RefreshReport(outcome.strategy, outcome.pending_rows, outcome.rows_changed, seconds)
