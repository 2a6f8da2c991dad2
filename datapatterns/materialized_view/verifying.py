"""Compare a view with its query, row by row, in one snapshot."""

from psycopg import sql
from psycopg.errors import SerializationFailure
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import OperationalError

from datapatterns.change_log.consuming import hold_consumer
from datapatterns.clock import Clock
from datapatterns.errors import (
    ConsumerMissingError,
    IsolationLevelError,
    SnapshotOutdatedError,
    ViewMissingError,
)
from datapatterns.materialized_view.comparing import compare
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.locking import VERIFYING, hold_stored
from datapatterns.materialized_view.part import Part
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.refreshing import bring_up_to_date
from datapatterns.materialized_view.reports import ViewVerification
from datapatterns.sql.composing import execute

# Both names are those of one row: as the snapshot shows it, and as it is now.
_REWRITTEN = text("""
SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
WHERE c.oid = ANY (CAST(:sources AS regclass[])::oid[])
  AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)
""")


def verify_view(
    conn: Connection, view: ViewDefinition, part: Part, *, limit: int, clock: Clock
) -> ViewVerification:
    """Refresh the view, then return the rows of ``part``, at most ``limit``, that it gets wrong.

    Both happen in the snapshot of one REPEATABLE READ transaction, so that writers may go on.

    Raises:
        IsolationLevelError: The transaction is not REPEATABLE READ.
        SnapshotOutdatedError: A table was truncated, or the view refreshed, just now.
        TransactionInUseError: The transaction has already written something.
        ViewChangedError: The view was created from another query.
        ViewMissingError: The view was not created.
        ViewNotPopulatedError: The view has not been filled yet.
        ViewSampleError: A sample is wanted of a view whose keys have no hash.
    """
    names = view.names
    # First of all: a snapshot from before this lock would miss what the last refresher wrote.
    hold_stored(conn, names, VERIFYING)
    found = conn.execute(select(func.current_setting("transaction_isolation"))).scalar_one()
    if found != "repeatable read":
        raise IsolationLevelError(found=found, needed="repeatable read")
    _hold_sources(conn, view)
    try:
        consumer = hold_consumer(conn, names.consumer, schema=names.schema)
    except ConsumerMissingError as error:
        raise ViewMissingError(names.view) from error
    except OperationalError as error:
        if isinstance(error.orig, SerializationFailure):
            raise SnapshotOutdatedError(names.view) from error
        raise
    if consumer is not None:
        bring_up_to_date(conn, view, consumer, clock=clock)
    return compare(conn, view, names.view, part, limit=limit)


def _hold_sources(conn: Connection, view: ViewDefinition) -> None:
    """Keep TRUNCATE away: it takes rows from older snapshots, too."""
    sources = [*read_record(conn, view).logs]
    for source in sources:
        execute(conn, sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(source)))
    rewritten = conn.scalars(_REWRITTEN, {"sources": sources}).first()
    if rewritten is not None:
        raise SnapshotOutdatedError(rewritten)
