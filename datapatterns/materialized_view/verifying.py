"""Compare a view with its query, row by row, in one statement and so in one snapshot.

What is stored together with what is pending has to be what the query gives, at any time, so
nobody has to stand still: neither writers nor those who refresh.
"""

from collections.abc import Sequence

from psycopg import sql
from sqlalchemy import Connection, func, select, text

from datapatterns.change_log.consuming import read_consumer, require_own_consumer
from datapatterns.errors import SnapshotOutdatedError, ViewMissingError, ViewNotPopulatedError
from datapatterns.materialized_view.comparing import compare
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.part import Part
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.reports import ViewVerification
from datapatterns.sql.composing import execute

# Both names are those of one row: as the snapshot shows it, and as it is now.
_REWRITTEN = text("""
SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
WHERE c.oid = ANY (CAST(:sources AS regclass[])::oid[])
  AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)
""")


def verify_view(
    conn: Connection, view: ViewDefinition, part: Part, *, limit: int
) -> ViewVerification:
    """Return the rows of ``part``, at most ``limit``, that the view gets wrong as of now.

    Raises:
        ForeignSnapshotError: The view was last refreshed in another database.
        SnapshotOutdatedError: A table was truncated after the transaction's snapshot.
        ViewChangedError: The view was created from another query.
        ViewMissingError: The view was not created.
        ViewNotPopulatedError: The view has not been filled yet.
        ViewSampleError: A sample is wanted of a view whose keys have no hash.
    """
    names = view.names
    record = read_record(conn, view)
    consumer = read_consumer(conn, names.consumer, schema=names.schema)
    if consumer is None:
        raise ViewMissingError(names.view)
    require_own_consumer(conn, names.consumer, schema=names.schema)
    if not consumer.populated:
        raise ViewNotPopulatedError(names.view)
    found = conn.execute(select(func.current_setting("transaction_isolation"))).scalar_one()
    if found != "read committed":
        _hold_sources(conn, [*record.logs])
    return compare(conn, view, names.realtime, part, limit=limit)


def _hold_sources(conn: Connection, sources: Sequence[str]) -> None:
    """Keep TRUNCATE away: it takes rows from older snapshots, too.

    A statement that has a snapshot of its own takes it after it has locked all that it reads.
    """
    for source in sources:
        execute(conn, sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(source)))
    rewritten = conn.scalars(_REWRITTEN, {"sources": sources}).first()
    if rewritten is not None:
        raise SnapshotOutdatedError(rewritten)
