"""Capture no more of a table than its views read."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, select

from datapatterns.change_log import change_log_tables
from datapatterns.change_log.explaining import explaining_rights, is_gone
from datapatterns.change_log.inspecting import locking_order
from datapatterns.change_log.locking import TableLock, hold_tables
from datapatterns.change_log.releasing import is_narrow, narrow, release
from datapatterns.materialized_view.forgetting_types import forget_types
from datapatterns.materialized_view.schema import materialized_views

CONSUMER_KIND: Final = "view"
"""What consumers that are views are."""


def capture_no_more(conn: Connection, schema: str, logs: Mapping[str, str]) -> None:
    """Release tables whose changes nobody consumes, and columns that no view reads.

    In the turn of this transaction, so nobody begins to consume them meanwhile.

    A column that is captured cannot be dropped. What others than views read of a table is not
    written down; then its columns stay.

    Args:
        conn: A connection in a transaction.
        schema: Where the library's tables live.
        logs: The log of each table, by the table's name in SQL.
    """
    tables = change_log_tables(schema)
    consumers, subscriptions = tables.consumers, tables.subscriptions
    kept: dict[str, set[str]] = {}
    locks: dict[str, TableLock] = {}
    for table, log in logs.items():
        kinds = conn.scalars(
            select(consumers.c.kind)
            .join(subscriptions, subscriptions.c.consumer == consumers.c.name)
            .where(subscriptions.c.log_name == log)
        ).all()
        if not kinds:
            locks[table] = TableLock.EVERYBODY
        elif {*kinds} == {CONSUMER_KIND} and not is_gone(conn, table):
            kept[table] = _read_columns(conn, schema, table)
            if not is_narrow(conn, table, kept[table], schema=schema):
                locks[table] = TableLock.WRITERS
    with explaining_rights():
        hold_tables(conn, locks, schema=schema)
    for table in sorted(locks, key=locking_order):
        if table in kept:
            forget_types(conn, schema, table, kept[table])
            narrow(conn, table, kept[table], schema=schema)
        else:
            release(conn, table, schema=schema)


def _read_columns(conn: Connection, schema: str, table: str) -> set[str]:
    """Return the columns that any view reads of the table."""
    views = materialized_views(schema)
    found = conn.scalars(select(views.c.sources[table]["columns"]))
    return {column for columns in found if columns is not None for column in columns}
