"""The plain view of what the tables give now: what is stored with what is pending.

It compares with the snapshot that the consumer has stored, in the reader's own: so it is exact
in every transaction, whatever that one has written itself, and waits for nobody.
"""

from collections.abc import Mapping
from operator import itemgetter

from psycopg import sql
from sqlalchemy import Connection

from datapatterns.change_log.inspecting import locking_order, resolve_name
from datapatterns.change_log.snapshots import XID_MAX
from datapatterns.materialized_view.blueprint import MARKER, Blueprint, Source, pending_name
from datapatterns.materialized_view.names import ViewNames
from datapatterns.materialized_view.shown_types import as_defined
from datapatterns.materialized_view.strategy import Strategy
from datapatterns.sql.composing import execute

_CREATE = sql.SQL("""
CREATE OR REPLACE VIEW {view} AS
WITH datapatterns_consumed AS MATERIALIZED (SELECT {consumed}({consumer}) AS snapshot),
{pending}{marker} AS MATERIALIZED (SELECT {seen} AS seen)
SELECT {columns} FROM ({current}) AS now
""")
_PENDING = sql.SQL("""{name} AS MATERIALIZED (
    SELECT {columns} FROM {log} AS log WHERE {is_pending}),
""")
# The upper bound is the planner's: an open range over a value it does not know is taken for a
# third of the log.
_IS_PENDING = sql.SQL("""(
    log.change_xid BETWEEN (SELECT pg_snapshot_xmax(snapshot) FROM datapatterns_consumed)
                       AND {xid_max}::xid8
    OR log.change_xid = ANY (ARRAY(SELECT pg_snapshot_xip(snapshot) FROM datapatterns_consumed)))
""")
_ANY = sql.SQL("EXISTS (SELECT FROM {log} AS log WHERE {is_pending} {which})")


def create_realtime(
    conn: Connection,
    names: ViewNames,
    blueprint: Blueprint,
    logs: Mapping[str, str],
    *,
    shown_as: ViewNames | None = None,
) -> None:
    """Create the view, or let it show what this version does.

    Args:
        conn: A connection in a transaction.
        names: The view's, or those of the version.
        blueprint: How it is kept.
        logs: The log of each table that the query reads, by the table's name in SQL.
        shown_as: The names of the view that shows it and of the consumer, if those are others.
    """
    shown = shown_as or names
    is_pending = _IS_PENDING.format(xid_max=sql.Literal(str(XID_MAX)))
    # Whoever reads the view locks the logs in this order, as who captures several tables.
    sources = [
        (locking_order(_table_of(conn, source)), number, source)
        for number, source in enumerate(blueprint.sources)
    ]
    pending = [
        _pending(conn, names, number, source, logs, is_pending)
        for _, number, source in sorted(sources, key=itemgetter(0))
    ]
    # A partition came or went, say: the log does not tell of its rows.
    changed = sql.SQL("{}({})").format(
        sql.Identifier(names.schema, "capture_changed"), sql.Literal(shown.consumer)
    )
    which = sql.SQL("" if blueprint.strategy is Strategy.REBUILD else "AND log.change_sign = 0")
    seen = [
        _ANY.format(log=sql.Identifier(names.schema, log), is_pending=is_pending, which=which)
        for log in (logs[table] for table in sorted(logs, key=locking_order))
    ]
    create = _CREATE.format(
        view=sql.Identifier(shown.schema, shown.realtime),
        consumed=sql.Identifier(names.schema, "consumed_snapshot"),
        consumer=sql.Literal(shown.consumer),
        pending=sql.SQL("").join(pending),
        marker=sql.Identifier(MARKER),
        seen=sql.SQL(" OR ").join([*seen, changed]),
        columns=as_defined(conn, names, blueprint.columns, "now"),
        current=sql.SQL(blueprint.current),  # SQLAlchemy wrote it, quoted
    )
    execute(conn, create)


def _pending(
    conn: Connection,
    names: ViewNames,
    number: int,
    source: Source,
    logs: Mapping[str, str],
    is_pending: sql.Composable,
) -> sql.Composable:
    table = _table_of(conn, source)
    columns = [sql.Identifier("log", name) for name in ("change_sign", *source.columns)]
    return _PENDING.format(
        name=sql.Identifier(pending_name(number)),
        columns=sql.SQL(", ").join(columns),
        log=sql.Identifier(names.schema, logs[table]),
        is_pending=is_pending,
    )


def _table_of(conn: Connection, source: Source) -> str:
    return sql.Identifier(*resolve_name(conn, source.table)).as_string(None)
