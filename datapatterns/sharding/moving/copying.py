"""Rows from one server to another, as bytes that nobody looks into."""

from collections.abc import Sequence
from typing import Any

from psycopg import sql

from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sql.composing import execute

_OUT = sql.SQL("COPY ({rows}) TO STDOUT (FORMAT binary)")
_IN = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT binary)")
_ROWS = sql.SQL("SELECT {columns} FROM {table} AS {row} WHERE {in_bucket}")
_DELETE = sql.SQL("DELETE FROM {table} AS {row} WHERE {in_bucket}")

TablePair = tuple[MovedTable, MovedTable]
"""A table on the source, and the same on the target."""


def copy_bucket(source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
    """Copy all rows of the bucket as of one moment; return how many those were.

    What an earlier try has left on the target goes.

    Raises:
        MoveTakenOverError: Another worker has taken over.
    """
    rows = 0
    with target.transaction("incoming", as_mover=True), source.snapshot():
        for _, there in tables:
            execute(
                target.conn,
                _DELETE.format(
                    table=there.place, row=sql.Identifier(ROW), in_bucket=there.in_bucket
                ),
            )
        for here, there in tables:
            query = _ROWS.format(
                columns=here.selected,
                table=here.place,
                row=sql.Identifier(ROW),
                in_bucket=here.in_bucket,
            )
            rows += pipe(source, target, query, (here, there), pace=pace)
    return rows


def pipe(
    source: Side, target: Side, query: sql.Composable, tables: TablePair, *, pace: Pace
) -> int:
    """Send the rows of ``query`` on the source into a table of the target; return their number.

    Both sides are in a transaction.
    """
    here, there = tables
    read: Any = source.conn.connection.driver_connection
    write: Any = target.conn.connection.driver_connection
    # By the source's names: the columns of two shards may be in another order.
    into = _IN.format(table=there.place, columns=here.column_list)
    with (
        shard_errors(source.shard),
        read.cursor() as reader,
        reader.copy(_OUT.format(rows=query)) as out,
        shard_errors(target.shard),
        write.cursor() as writer,
    ):
        with writer.copy(into) as copy:
            for block in out:
                copy.write(block)
                pace.sent(len(block))
        copied: int = writer.rowcount
    return copied
