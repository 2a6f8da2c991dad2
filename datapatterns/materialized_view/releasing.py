"""Capture no more of a table than its views read."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, func, select

from datapatterns.change_log import ChangeLog, change_log_tables
from datapatterns.change_log.capturing import narrow
from datapatterns.materialized_view.schema import materialized_views

CONSUMER_KIND: Final = "view"
"""What consumers that are views are."""


def capture_no_more(conn: Connection, schema: str, logs: Mapping[str, str]) -> None:
    """Release tables whose changes nobody consumes, and columns that no view reads.

    A column that is captured cannot be dropped. What others than views read of a table is not
    written down; then its columns stay.

    Args:
        conn: A connection in a transaction.
        schema: Where the library's tables live.
        logs: The log of each table, by the table's name in SQL.
    """
    tables = change_log_tables(schema)
    consumers, subscriptions = tables.consumers, tables.subscriptions
    for table, log in logs.items():
        kinds = conn.scalars(
            select(consumers.c.kind)
            .join(subscriptions, subscriptions.c.consumer == consumers.c.name)
            .where(subscriptions.c.log_name == log)
        ).all()
        if not kinds:
            ChangeLog(schema).release(conn, table)
        elif {*kinds} == {CONSUMER_KIND} and conn.scalar(select(func.to_regclass(table))):
            narrow(conn, table, _read_columns(conn, schema, table), schema=schema)


def _read_columns(conn: Connection, schema: str, table: str) -> set[str]:
    """Return the columns that any view reads of the table."""
    views = materialized_views(schema)
    found = conn.scalars(select(views.c.sources[table]["columns"]))
    return {column for columns in found if columns is not None for column in columns}
