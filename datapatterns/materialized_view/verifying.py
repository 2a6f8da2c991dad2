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
from datapatterns.materialized_view.looking import look
from datapatterns.materialized_view.part import Part
from datapatterns.materialized_view.records import read_record
from datapatterns.materialized_view.reports import ViewVerification
from datapatterns.materialized_view.versions import version_at_hand
from datapatterns.sql.composing import execute

# What the snapshot shows of the sources and their partitions, and what is: a TRUNCATE gives a table
# another file, and statements are planned for the partitions that there are.
_REWRITTEN = text("""
WITH RECURSIVE shown (source, oid) AS (
    SELECT s.oid, s.oid FROM unnest(CAST(:sources AS regclass[])::oid[]) AS s (oid)
    UNION ALL
    SELECT shown.source, i.inhrelid FROM shown
    JOIN pg_catalog.pg_inherits i ON i.inhparent = shown.oid AND NOT i.inhdetachpending),
present (source, oid) AS (
    SELECT s.oid, coalesce(p.relid::oid, s.oid)
    FROM unnest(CAST(:sources AS regclass[])::oid[]) AS s (oid)
    LEFT JOIN LATERAL pg_partition_tree(s.oid::regclass) AS p ON true)
SELECT coalesce(s.source, p.source)::regclass::text
FROM shown s FULL JOIN present p ON (p.source, p.oid) = (s.source, s.oid)
LEFT JOIN pg_catalog.pg_class c ON c.oid = s.oid
WHERE s.oid IS NULL OR p.oid IS NULL
   OR c.relkind <> 'p' AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)
""")


def verify_view(
    conn: Connection, view: ViewDefinition, part: Part, *, limit: int
) -> ViewVerification:
    """Return the rows of ``part``, at most ``limit``, that the view gets wrong as of now.

    Raises:
        ForeignSnapshotError: The view was last refreshed in another database.
        SnapshotOutdatedError: A table was truncated, got or lost a partition after the
            transaction's snapshot, or the view went.
        ViewChangedError: The view was created from another query, or a part of it is gone.
        ViewMissingError: The view was not created.
        ViewNotPopulatedError: The view has not been filled yet.
        ViewSampleError: A sample is wanted of a view whose keys have no hash.
    """
    return look(
        conn, view.names, lambda: _verify(conn, version_at_hand(conn, view), part, limit=limit)
    )


def _verify(conn: Connection, view: ViewDefinition, part: Part, *, limit: int) -> ViewVerification:
    names = view.names
    record = read_record(conn, view)
    consumer = read_consumer(conn, names.consumer, schema=names.schema)
    if consumer is None:
        raise ViewMissingError(names.view)
    require_own_consumer(conn, names.consumer, schema=names.schema)
    if not consumer.populated:
        raise ViewNotPopulatedError(names.view)
    found = conn.execute(select(func.current_setting("transaction_isolation"))).scalar_one()
    if found == "read committed":
        return compare(conn, view, names.realtime, part, limit=limit)
    hold_sources(conn, [*record.logs])
    compared = compare(conn, view, names.realtime, part, limit=limit)
    # The comparison is planned for the partitions of then: who attaches one waits for no reader.
    require_unchanged(conn, [*record.logs])
    return compared


def hold_sources(conn: Connection, sources: Sequence[str]) -> None:
    """Keep TRUNCATE away: it takes rows from older snapshots, too.

    A statement that has a snapshot of its own takes it after it has locked all that it reads.
    """
    for source in sources:
        execute(conn, sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.SQL(source)))
    require_unchanged(conn, sources)


def require_unchanged(conn: Connection, sources: Sequence[str]) -> None:
    """Make sure that the snapshot still shows of ``sources`` all that it should.

    Raises:
        SnapshotOutdatedError: One was truncated, rewritten, or got or lost a partition.
    """
    rewritten = conn.scalars(_REWRITTEN, {"sources": sources}).first()
    if rewritten is not None:
        raise SnapshotOutdatedError(rewritten)
