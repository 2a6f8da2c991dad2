"""Bring stored rows up to date, and the consumer with them, in one transaction."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, literal, select

from datapatterns.change_log import (
    Consumer,
    Snapshot,
    capture_changed,
    current_snapshot,
    not_shown_by,
)
from datapatterns.change_log.consuming import (
    TransactionFacts,
    advance_consumer,
    lock_consumer,
    read_consumer,
    transaction_facts,
)
from datapatterns.clock import Clock
from datapatterns.errors import (
    ConsumerMissingError,
    ViewDiffersError,
    ViewMissingError,
    ViewNotPopulatedError,
)
from datapatterns.failpoints import failpoint
from datapatterns.materialized_view.creating import (
    find_logs,
    require_same_names,
)
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.identified import columns_compared_as_text
from datapatterns.materialized_view.locking import hold_stored, hold_versions
from datapatterns.materialized_view.meaning import under
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.pending_changes import count_pending
from datapatterns.materialized_view.pricing import is_dearer_than_rebuild
from datapatterns.materialized_view.rebuilding import rebuild
from datapatterns.materialized_view.records import ViewRecord, read_record, record_duration
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.stacking import noting_parents, parents_of
from datapatterns.materialized_view.strategy import Strategy
from datapatterns.materialized_view.switching import try_to_switch
from datapatterns.materialized_view.versions import version_at_hand, version_meant


class _Outset(NamedTuple):
    """What has to be known before the first lock, in one round trip.

    Attributes:
        facts: Those of the transaction.
        parents: The views that the view is built upon.
        version: The view, or the version that is going to take its place if that is meant.
    """

    facts: TransactionFacts
    parents: Sequence[str]
    version: ViewDefinition


class _Outcome(NamedTuple):
    strategy: Strategy
    pending_rows: int
    rows_changed: int
    snapshot: Snapshot


def refresh_view(
    conn: Connection, view: ViewDefinition, *, skip_locked: bool, clock: Clock
) -> RefreshReport | None:
    """Take in what is pending; None if ``skip_locked`` and somebody else is at it.

    The version that is going to take the view's place is populated, and the next time it does.
    """
    outset = _read_outset(conn, view)

    def work() -> RefreshReport | None:
        if outset.version is view:
            return _refresh_version(conn, view, outset.facts, skip_locked=skip_locked, clock=clock)
        return _refresh_upcoming(conn, view, outset.facts, skip_locked=skip_locked, clock=clock)

    return noting_parents(conn, view.names, outset.parents, work)


def rebuild_view(conn: Connection, view: ViewDefinition, *, clock: Clock) -> RefreshReport:
    """Make the stored rows what the query gives, whatever they are.

    Of two versions, it is those of the one that is meant.
    """
    outset = _read_outset(conn, view)

    def work() -> RefreshReport:
        version = outset.version
        if version is not view:
            hold_versions(conn, view.names)
            version = version_at_hand(conn, view)
        return _rebuild_version(conn, version, outset.facts, clock=clock)

    return noting_parents(conn, view.names, outset.parents, work)


def _read_outset(conn: Connection, view: ViewDefinition) -> _Outset:
    row = conn.execute(_asking(view.names)).one()
    version = view if row.digest is None else version_meant(view, row.strategy, row.digest)
    return _Outset(TransactionFacts(row.isolation_level, row.own_xid), row.parents, version)


@lru_cache(maxsize=512)
def _asking(names: ViewNames) -> Select[Any]:
    views = materialized_views(names.schema)
    one, is_next = select(literal(1)).subquery("one"), views.c.name == names.next.view
    asked = (*transaction_facts, parents_of(names).label("parents"))
    versions = (views.c.strategy, views.c.digest)
    return select(*asked, *versions).select_from(one.outerjoin(views, is_next))


def _refresh_upcoming(
    conn: Connection,
    view: ViewDefinition,
    facts: TransactionFacts,
    *,
    skip_locked: bool,
    clock: Clock,
) -> RefreshReport | None:
    names = view.names
    if not hold_versions(conn, names, skip_locked=skip_locked):
        return None
    # Whoever waited may find that it has taken its place.
    version = version_at_hand(conn, view)
    if version is view:
        return _refresh_version(conn, view, facts, skip_locked=skip_locked, clock=clock)
    consumer = read_consumer(conn, version.names.consumer, schema=names.schema)
    if consumer is None or not consumer.populated:
        return _rebuild_version(conn, version, facts, clock=clock)
    # Alone, so that nobody makes the view fresher than what is going to take its place.
    hold_stored(conn, names, alone=True)
    report = _refresh_version(conn, version, facts, skip_locked=skip_locked, clock=clock)
    if report is not None:
        try_to_switch(conn, names)
    return report


def _refresh_version(
    conn: Connection,
    view: ViewDefinition,
    facts: TransactionFacts,
    *,
    skip_locked: bool,
    clock: Clock,
) -> RefreshReport | None:
    consumer = _locked(conn, view, facts, skip_locked=skip_locked)
    return None if consumer is None else bring_up_to_date(conn, view, consumer, clock=clock)


def _rebuild_version(
    conn: Connection, view: ViewDefinition, facts: TransactionFacts, *, clock: Clock
) -> RefreshReport:
    started = clock.monotonic()
    consumer = _locked(conn, view, facts)
    if consumer is None:
        raise AssertionError("this lock is waited for")
    record = read_record(conn, view)
    require_same_names(conn, view, record)
    find_logs(view, record)
    pending = 0
    if consumer.populated:
        pending = _count_pending(conn, view, record, consumer.snapshot)[0]
    outcome = _rebuild(conn, view, record, pending)
    _advance(conn, view, consumer, outcome, is_rebuilt=True)
    return _report(conn, view, outcome, clock.monotonic() - started)


def bring_up_to_date(
    conn: Connection, view: ViewDefinition, consumer: Consumer, *, clock: Clock
) -> RefreshReport:
    """Take in what is pending for a consumer that this transaction has locked."""
    started = clock.monotonic()
    record = read_record(conn, view)
    if not consumer.populated:
        raise ViewNotPopulatedError(view.names.view)
    require_same_names(conn, view, record)
    if consumer.changed_logs:
        # A partition came or went, say: the log does not tell of its rows.
        pending = _count_pending(conn, view, record, consumer.snapshot)[0]
        outcome = _rebuild(conn, view, record, pending)
        _advance(conn, view, consumer, outcome, is_rebuilt=True)
    else:
        outcome = _follow(conn, view, record, consumer.snapshot)
        if _advance(conn, view, consumer, outcome):
            # Since the lock was taken; joins may have met rows that no delta belongs to. The
            # shapes of then stay stored, so the next refresh rebuilds once more.
            outcome = _rebuild(conn, view, record, outcome.pending_rows)
            _advance(conn, view, consumer, outcome)
    return _report(conn, view, outcome, clock.monotonic() - started)


def _locked(
    conn: Connection, view: ViewDefinition, facts: TransactionFacts, *, skip_locked: bool = False
) -> Consumer | None:
    names = view.names
    hold_stored(conn, names)
    try:
        return lock_consumer(
            conn, names.consumer, schema=names.schema, skip_locked=skip_locked, facts=facts
        )
    except ConsumerMissingError as error:
        raise ViewMissingError(view.names.view) from error


def _follow(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> _Outcome:
    if is_dearer_than_rebuild(conn, view, record, since):
        return _rebuild(conn, view, record, _count_pending(conn, view, record, since)[0])
    names = view.names
    try:
        logs = find_logs(view, record)
        with under(conn, record.settings):
            applied = record.maintenance.apply(conn, logs, since)
    except ViewDiffersError:
        # A partition may have gone since the lock was taken, and its rows with it.
        if not conn.scalar(select(capture_changed(names.consumer, schema=names.schema))):
            raise
        return _rebuild(conn, view, record, 0)
    if not applied.is_done:
        return _rebuild(conn, view, record, applied.pending_rows)
    strategy = record.explanation.strategy
    return _Outcome(strategy, applied.pending_rows, applied.rows_changed, applied.snapshot)


def _rebuild(conn: Connection, view: ViewDefinition, record: ViewRecord, pending: int) -> _Outcome:
    statement = rebuild(
        record.maintenance.fresh(),
        view.names,
        record.maintenance.stored,
        compared_as_text=columns_compared_as_text(conn, view.names, record.maintenance),
    )
    with under(conn, record.settings):
        found = conn.execute(statement).one()
    return _Outcome(Strategy.REBUILD, pending, found.deleted + found.inserted, found.snapshot)


def _count_pending(
    conn: Connection, view: ViewDefinition, record: ViewRecord, since: Snapshot
) -> tuple[int, Snapshot]:
    """Return how many changes are pending, and in which snapshot."""
    counted = count_pending(
        view.names.schema, record.logs.values(), lambda xid: not_shown_by(since, xid)
    )
    row = conn.execute(select(counted, current_snapshot)).one()
    return row[0], row[1]


def _advance(
    conn: Connection,
    view: ViewDefinition,
    consumer: Consumer,
    outcome: _Outcome,
    *,
    is_rebuilt: bool = False,
) -> bool:
    """Store how far the view is; return whether it has to be rebuilt, by now."""
    failpoint("view.rows-written")
    return advance_consumer(
        conn,
        consumer.name,
        outcome.snapshot,
        schema=view.names.schema,
        rebuilt=consumer if is_rebuilt else None,
        own_xid=consumer.own_xid,
    )


def _report(
    conn: Connection, view: ViewDefinition, outcome: _Outcome, seconds: float
) -> RefreshReport:
    record_duration(conn, view.names, seconds)
    return RefreshReport(outcome.strategy, outcome.pending_rows, outcome.rows_changed, seconds)
