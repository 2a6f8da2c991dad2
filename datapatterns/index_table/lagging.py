"""How far an index is behind its table, and whether a write is in it."""

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    func,
    literal,
    or_,
    select,
)

from datapatterns.change_log import ChangeToken, change_log_tables, current_snapshot, pending_for
from datapatterns.change_log.consuming import require_own_snapshot
from datapatterns.change_log.explaining import capture_obstacle
from datapatterns.change_log.identity import DatabaseIdentity
from datapatterns.change_log.shapes import capture_changed
from datapatterns.errors import IndexDetachedError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import NEVER_BEHIND, IndexLag
from datapatterns.index_table.following import TRUNCATED, pending_log
from datapatterns.index_table.maintenance import consumer_name
from datapatterns.index_table.schema import index_tables

COUNTED_ROWS_MAX: Final = 100_000
"""How far pending changes are counted."""

STALE_SECONDS: Final = 5.0
"""So old may be what an index is known to show, while nothing changes: nobody writes down at every
look that there was nothing."""


def read_lag(conn: Connection, definition: IndexDefinition) -> IndexLag:
    """Return how far the index is behind what this statement sees.

    Raises:
        IndexDetachedError: Its consumer was removed.
    """
    if definition.mode != "async":
        return NEVER_BEHIND
    log = followed_log(conn, definition)
    some = select(log.c.change_xid).where(is_pending(definition, log)).limit(COUNTED_ROWS_MAX)
    counted = select(func.count()).select_from(some.subquery()).scalar_subquery()
    known = index_tables(definition.schema).index_table
    consumers = change_log_tables(definition.schema).consumers
    since = func.coalesce(known.c.as_of, consumers.c.registered_at)
    row = conn.execute(
        select(
            counted.label("pending"),
            must_rebuild(definition).label("must_rebuild"),
            func.extract("epoch", func.statement_timestamp() - since).label("age"),
        )
        .select_from(known.join(consumers, consumers.c.name == consumer_name(definition)))
        .where(known.c.name == definition.name)
    ).one_or_none()
    if row is None:
        raise _detached(definition)
    is_behind = bool(row.pending or row.must_rebuild)
    return IndexLag(
        pending_rows=row.pending,
        behind_seconds=float(row.age) if is_behind else 0.0,
        must_rebuild=row.must_rebuild,
    )


def has_work(conn: Connection, definition: IndexDefinition) -> bool:
    """Return whether anything is to be taken in, or written down how far that is.

    Nothing is of an index that was not created in this database.

    Raises:
        IndexDetachedError: Its consumer was removed.
    """
    known = index_tables(definition.schema).index_table
    own = known.c.name == definition.name
    if conn.scalar(select(known.c.index_id).where(own)) is None:
        return False
    log = followed_log(conn, definition)
    age = func.statement_timestamp() - known.c.as_of
    is_fresh = select(literal(1)).where(own, age < timedelta(seconds=STALE_SECONDS))
    is_due = or_(is_any_pending(definition, log), ~is_fresh.exists(), must_rebuild(definition))
    return bool(conn.scalar(select(is_due)))


def contains(conn: Connection, definition: IndexDefinition, token: ChangeToken) -> bool:
    """Return whether what ``token`` stands for is in the index; also if it was rolled back.

    That is so if the consumer's snapshot shows it, or if nothing at all is pending: whoever takes
    changes in stores no snapshot while there are none.

    Raises:
        ForeignSnapshotError: Changes were last taken in in another database.
        IndexDetachedError: Its consumer was removed.
        ValueError: The token comes from another cluster.
    """
    log = followed_log(conn, definition)
    consumers = change_log_tables(definition.schema).consumers
    row = conn.execute(
        select(
            consumers.c.snapshot,
            consumers.c.system_identifier,
            consumers.c.database_oid,
            current_snapshot.label("now"),
            must_rebuild(definition).label("must_rebuild"),
            is_any_pending(definition, log).label("is_behind"),
        ).where(consumers.c.name == consumer_name(definition))
    ).one_or_none()
    if row is None:
        raise _detached(definition)
    require_own_snapshot(
        conn, consumer_name(definition), DatabaseIdentity(row.system_identifier, row.database_oid)
    )
    if row.system_identifier != token.system_identifier:
        raise ValueError("the token comes from another cluster")
    if row.must_rebuild:
        return False
    if row.snapshot.shows(token.xid):
        return True
    return bool(row.now.shows(token.xid)) and not row.is_behind


def followed_log(conn: Connection, definition: IndexDefinition) -> FromClause:
    """Return the log of the index's table.

    Raises:
        IndexDetachedError: Its consumer was removed.
    """
    return pending_log(definition, _log_name(conn, definition))


def _log_name(conn: Connection, definition: IndexDefinition) -> str:
    subscriptions = change_log_tables(definition.schema).subscriptions
    name = conn.scalar(
        select(subscriptions.c.log_name).where(
            subscriptions.c.consumer == consumer_name(definition)
        )
    )
    if name is None:
        raise _detached(definition)
    return str(name)


def capture_problem(conn: Connection, definition: IndexDefinition) -> str | None:
    """Return which changes of the table go unlogged and what to do; None if none do."""
    return capture_obstacle(conn, _log_name(conn, definition), schema=definition.schema)


def is_pending(definition: IndexDefinition, log: FromClause) -> ColumnElement[bool]:
    """Return the condition that a logged change is still to be taken in."""
    return pending_for(consumer_name(definition), log.c.change_xid, schema=definition.schema)


def is_any_pending(definition: IndexDefinition, log: FromClause) -> ColumnElement[bool]:
    """Return the condition that some change is still to be taken in."""
    return _some(log).where(is_pending(definition, log)).exists()


def is_truncation_pending(definition: IndexDefinition, log: FromClause) -> ColumnElement[bool]:
    """Return the condition that rows went which no logged change names."""
    truncated = log.c.change_sign == TRUNCATED
    return _some(log).where(is_pending(definition, log), truncated).exists()


def must_rebuild(definition: IndexDefinition) -> ColumnElement[bool]:
    """Return the condition that what is pending is not all, so that all rows are read anew."""
    consumers = change_log_tables(definition.schema).consumers
    name = consumer_name(definition)
    return or_(
        ~select(literal(1)).where(and_(consumers.c.name == name, consumers.c.populated)).exists(),
        select(capture_changed(name, schema=definition.schema)).scalar_subquery(),
    )


def _some(log: FromClause) -> Select[Any]:
    return select(literal(1)).select_from(log)


def _detached(definition: IndexDefinition) -> IndexDetachedError:
    return IndexDetachedError(definition.name, table=definition.base.fullname)
