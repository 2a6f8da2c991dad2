"""Bring stored rows up to date, and the consumer with them, in one transaction."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, literal, select

from datapatterns.change_log import (
    Consumer,
)
from datapatterns.change_log.consuming import (
    TransactionFacts,
    advance_consumer,
    lock_consumer,
    read_consumer,
    transaction_facts,
)
from datapatterns.change_log.partitions import is_as_noted, note_partitions
from datapatterns.clock import Clock
from datapatterns.errors import (
    ConsumerMissingError,
    ViewMissingError,
    ViewNotPopulatedError,
)
from datapatterns.failpoints import failpoint
from datapatterns.materialized_view.creating import (
    find_logs,
    require_same_names,
)
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.following import (
    OVERTAKEN,
    Outcome,
    count_all_pending,
    follow,
    follow_part,
    run_query,
)
from datapatterns.materialized_view.locking import hold_stored, hold_versions
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.part import part_where
from datapatterns.materialized_view.records import ViewRecord, read_record, record_duration
from datapatterns.materialized_view.reports import RefreshReport
from datapatterns.materialized_view.schema import materialized_views
from datapatterns.materialized_view.stacking import noting_parents, parents_of
from datapatterns.materialized_view.switching import may_switch, try_to_switch
from datapatterns.materialized_view.versions import version_at_hand, version_meant
from datapatterns.materialized_view.within import Within

logger = logging.getLogger(__name__)


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


def refresh_view(
    conn: Connection, view: ViewDefinition, *, skip_locked: bool, clock: Clock
) -> RefreshReport | None:
    """Take in what is pending; None if ``skip_locked`` and somebody else is at it.

    The version that is going to take the view's place is populated, and the next time it does.
    If the role may not do that, it keeps that version fresh until the view's owner comes.
    """
    outset = _read_outset(conn, view)

    def work() -> RefreshReport | None:
        if outset.version is view:
            return _refresh_version(conn, view, outset.facts, skip_locked=skip_locked, clock=clock)
        return _refresh_upcoming(conn, view, outset.facts, skip_locked=skip_locked, clock=clock)

    return noting_parents(conn, view.names, outset.parents, work)


def rebuild_view(
    conn: Connection,
    view: ViewDefinition,
    *,
    clock: Clock,
    where: ColumnElement[bool] | None = None,
) -> RefreshReport:
    """Make the stored rows what the query gives, whatever they are.

    Of two versions, it is those of the one that is meant.

    Args:
        conn: A connection in a transaction that has written nothing.
        view: The view.
        clock: Measures how long it takes.
        where: Only those that this holds for; to the others what is pending is applied.
    """
    outset = _read_outset(conn, view)

    def work() -> RefreshReport:
        version = outset.version
        if version is not view:
            hold_versions(conn, view.names)
            version = version_at_hand(conn, view)
        if where is None:
            return _rebuild_version(conn, version, outset.facts, clock=clock)
        return _rebuild_part(conn, version, outset.facts, where, clock=clock)

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
    if not may_switch(conn, names):
        logger.info("the owner has to let another version take the place of view %s", names.view)
        return _refresh_version(conn, version, facts, skip_locked=skip_locked, clock=clock)
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
        pending = count_all_pending(conn, view, record, consumer.snapshot)
    if consumer.changed_logs:
        note_partitions(conn, consumer.name, consumer.changed_logs, schema=view.names.schema)
    outcome = run_query(conn, view, record, pending)
    _advance(conn, view, consumer, outcome, is_rebuilt=True)
    return _report(conn, view, outcome, clock.monotonic() - started)


def _rebuild_part(
    conn: Connection,
    view: ViewDefinition,
    facts: TransactionFacts,
    where: ColumnElement[bool],
    *,
    clock: Clock,
) -> RefreshReport:
    started = clock.monotonic()
    consumer = _locked(conn, view, facts)
    if consumer is None:
        raise AssertionError("this lock is waited for")
    record = read_record(conn, view)
    if not consumer.populated:
        raise ViewNotPopulatedError(view.names.view)
    require_same_names(conn, view, record)
    asked = part_where(conn, view, record.maintenance, where)
    outcome = _recompute(conn, view, record, consumer, asked)
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
        outcome = _recompute(conn, view, record, consumer)
    else:
        outcome = follow(conn, view, record, consumer)
        if _advance(conn, view, consumer, outcome):
            # Since the lock was taken; joins may have met rows that no delta belongs to.
            outcome = _run_overtaken(conn, view, record, consumer, outcome.pending_rows)
    return _report(conn, view, outcome, clock.monotonic() - started)


def _recompute(
    conn: Connection,
    view: ViewDefinition,
    record: ViewRecord,
    consumer: Consumer,
    asked: Within | None = None,
) -> Outcome:
    """Compute anew what logs do not tell of, and what is asked for; apply the rest, and advance."""
    outcome = follow_part(conn, view, record, consumer, asked)
    has_changed = _advance(conn, view, consumer, outcome, is_rebuilt=True)
    if outcome.is_whole or not has_changed:
        return outcome
    # A partition that is not captured is to be looked at again, but nothing new.
    if is_as_noted(conn, consumer.name, consumer.changed_logs, schema=view.names.schema):
        return outcome
    return _run_overtaken(conn, view, record, consumer, outcome.pending_rows)


def _run_overtaken(
    conn: Connection, view: ViewDefinition, record: ViewRecord, consumer: Consumer, pending: int
) -> Outcome:
    """Run the query after all; the next refresh looks at what changed meanwhile once more."""
    note_partitions(conn, consumer.name, consumer.shapes, schema=view.names.schema)
    outcome = run_query(conn, view, record, pending, OVERTAKEN)
    _advance(conn, view, consumer, outcome)
    return outcome


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


def _advance(
    conn: Connection,
    view: ViewDefinition,
    consumer: Consumer,
    outcome: Outcome,
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
    conn: Connection, view: ViewDefinition, outcome: Outcome, seconds: float
) -> RefreshReport:
    record_duration(conn, view.names, seconds)
    return RefreshReport(
        outcome.strategy,
        outcome.pending_rows,
        outcome.rows_changed,
        seconds,
        partitions=outcome.partitions,
        reason=outcome.reason,
    )
