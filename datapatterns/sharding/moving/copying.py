"""Rows from one server to another, as bytes that nobody looks into."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from psycopg import sql

from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sql.composing import execute

_OUT = sql.SQL("COPY ({rows}) TO STDOUT (FORMAT {form})")
_IN = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT {form})")
_BINARY, _TEXT = sql.SQL("binary"), sql.SQL("text")
_ROWS = sql.SQL("SELECT {columns} FROM ONLY {table} AS {row} WHERE {in_bucket}")
_DELETE = sql.SQL("DELETE FROM ONLY {table} AS {row} WHERE {in_bucket}")

_BLOCK_BYTES = 65_536
"""A server sends each row by itself; to pass them on so would take longer than to store them."""

TablePair = tuple[MovedTable, MovedTable]
"""A table on the source, and the same on the target."""


def copy_bucket(source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
    """Copy all rows of the bucket as of one moment; return how many those were.

    What an earlier try has left on the target goes.

    Raises:
        MoveTakenOverError: Another worker has taken over.
    """
    rows = 0
    with target.transaction("incoming", as_mover=True), source.snapshot(places_of(tables)):
        for _, there in tables:
            execute(
                target.conn,
                _DELETE.format(
                    table=there.place, row=sql.Identifier(ROW), in_bucket=there.in_bucket
                ),
            )
        for here, there in tables:
            rows += pipe(source, target, rows_of(here), (here, there), pace=pace)
    return rows


def places_of(tables: Sequence[TablePair]) -> list[sql.Composable]:
    """Return where the tables are on the source."""
    return [here.place for here, _ in tables]


def rows_of(here: MovedTable) -> sql.Composable:
    """Return the query of all rows of the bucket."""
    return _ROWS.format(
        columns=here.selected,
        table=here.place,
        row=sql.Identifier(ROW),
        in_bucket=here.in_bucket,
    )


def pipe(  # noqa: PLR0913 -- two of them are about Citus only
    source: Side,
    target: Side,
    query: sql.Composable,
    tables: TablePair,
    *,
    pace: Pace,
    binary: bool = True,
    into: sql.Identifier | None = None,
) -> int:
    """Send the rows of ``query`` on the source into a table of the target; return their number.

    Both sides are in a transaction. ``into`` is another table that has the same columns.
    """
    here, there = tables
    read: Any = source.conn.connection.driver_connection
    write: Any = target.conn.connection.driver_connection
    # By the source's names: the columns of two shards may be in another order.
    form = _BINARY if binary else _TEXT
    place = there.place if into is None else into
    incoming = _IN.format(table=place, columns=here.column_list, form=form)
    with (
        shard_errors(source.shard),
        read.cursor() as reader,
        reader.copy(_OUT.format(rows=query, form=form)) as out,
        shard_errors(target.shard),
        write.cursor() as writer,
    ):
        with writer.copy(incoming) as copy:
            for block in _in_blocks(out):
                copy.write(block)
                pace.sent(len(block))
        copied: int = writer.rowcount
    return copied


def _in_blocks(rows: Iterable[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += len(row)
        if size >= _BLOCK_BYTES:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    if waiting:
        yield b"".join(waiting)
