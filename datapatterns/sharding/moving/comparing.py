"""Prove that both shards hold the same rows of a bucket."""

from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from psycopg import sql

from datapatterns.errors import MoveMismatchError
from datapatterns.sharding.moving.both_sides import on_both
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.draining import Batch
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sql.composing import execute

# A sum does not depend on the order in which rows are read; that of bigint has no bounds. The hash
# of a record is a sum itself, of multiples of those of its values: without another hash of it, two
# rows that have exchanged values in a column would add up to the same.
_DIGEST = sql.SQL("""
SELECT count(*), coalesce(sum(hashint8extended(hash_record_extended({hashed}, 0), 0)), 0)
FROM {only} {table} AS {row} WHERE {chosen}
""")
_ONLY, _WITH_HEIRS = sql.SQL("ONLY"), sql.SQL("")
_THESE = sql.SQL("ctid = ANY ({})")


def compare(source: Side, target: Side, tables: Sequence[TablePair]) -> int:
    """Compare all tables, in transactions of the caller's; return how many rows there are.

    Raises:
        MoveMismatchError: A table differs.
    """
    total = 0
    for here, there in tables:
        (rows, digest), found = on_both(
            partial(digest_of, source, here, like=here),
            partial(digest_of, target, there, like=here),
        )
        if found != (rows, digest):
            raise MoveMismatchError(
                source.bucket, here.place.as_string(None), rows=rows, found=found[0]
            )
        total += rows
    return total


def compare_changed(source: Side, target: Side, batch: Batch) -> None:
    """Compare the rows that a round has brought over, in the source's transaction that read them.

    Raises:
        MoveMismatchError: A table differs.
    """
    for each in batch.tables:
        here, there = each.here, each.there
        rows, digest = digest_of(source, here, like=here, keys=each.keys)
        found = digest_of(target, there, like=here, keys=each.keys)
        if found != (rows, digest):
            raise MoveMismatchError(
                source.bucket, here.place.as_string(None), rows=rows, found=found[0]
            )


def digest_of(
    side: Side, table: MovedTable, *, like: MovedTable, keys: str | None = None
) -> tuple[int, Decimal]:
    """Return how many rows of the bucket there are, and a number made of all of them.

    Args:
        side: Where.
        table: The table there.
        like: Whose columns to read, in which order.
        keys: Of these rows alone, as JSON.
    """
    chosen = table.in_bucket if keys is None else _THESE.format(table.with_keys(keys))
    statement = _DIGEST.format(
        hashed=like.hashed,
        only=_WITH_HEIRS if side.is_citus else _ONLY,
        table=table.place,
        row=sql.Identifier(ROW),
        chosen=chosen,
    )
    found: Sequence[Any] = execute(side.conn, statement).one()
    return found[0], found[1]
