"""Remove the rows of a bucket from a shard that is not its owner."""

from collections.abc import Sequence

from psycopg import sql

from datapatterns.failpoints import failpoint
from datapatterns.sharding.moving.holding import HeldState, Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sql.composing import execute

# An heir of the table has rows in the same places, which are others.
_BATCH = sql.SQL("""
DELETE FROM ONLY {table} AS {row} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM ONLY {table} AS {row} WHERE {in_bucket} LIMIT {limit}))
""")


def clean(
    side: Side,
    tables: Sequence[MovedTable],
    *,
    state: HeldState,
    rows_at_once: int,
    pace: Pace,
) -> None:
    """Delete all rows of the bucket, some at a time, and say that they are gone.

    Args:
        side: Where.
        tables: The tables there.
        state: What the bucket is there; never "owned".
        rows_at_once: How many rows one transaction deletes.
        pace: How to wait.

    Raises:
        MoveTakenOverError: Another worker has taken over, or the bucket is something else there.
    """
    for table in tables:
        statement = _BATCH.format(
            table=table.place,
            row=sql.Identifier(ROW),
            in_bucket=table.in_bucket,
            limit=sql.Literal(rows_at_once),
        )
        deleted = rows_at_once
        while deleted == rows_at_once:
            with side.transaction(state, as_mover=True) as conn:
                deleted = execute(conn, statement).rowcount
            failpoint("move.batch-cleaned")
            pace.beat()
    with side.transaction(state):
        side.become("cleaned", was=state, like=side.now())
