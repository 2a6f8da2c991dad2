"""What has changed since the copy goes after it, until next to nothing is left."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Error as DriverError
from psycopg import sql
from psycopg.errors import ExclusionViolation, UniqueViolation
from sqlalchemy import ARRAY, BigInteger, bindparam, delete, func, select
from sqlalchemy.exc import DBAPIError

from datapatterns.sharding.moving.copying import TablePair, pipe
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.composing import execute

KEYS_MAX = 5_000
"""How many keys one round takes at most: both servers get them as one text."""

# A key may have left for another bucket, which the target may own: the bucket is asked for again.
_IMAGES = sql.SQL("""
SELECT {columns} FROM {table} AS {row}, (SELECT DISTINCT {key} FROM {keys}) AS k
WHERE {same_key} AND {in_bucket}
""")
_FORGET = sql.SQL("DELETE FROM {table} AS {row} USING {keys} WHERE {same_key} AND {in_bucket}")


def drain(source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace) -> int:
    """Bring the rows that have changed to the target, and forget that; return how many keys.

    Raises:
        MoveTakenOverError: Another worker has taken over.
    """
    limit: int | None = KEYS_MAX
    while True:
        try:
            with source.transaction("owned", snapshot=True):
                return len(apply_dirty(source, target, tables, pace=pace, limit=limit))
        except (DBAPIError, DriverError) as error:
            if limit is None or not _is_in_the_way(error):
                raise
            # A row has got what another one had whose change is in the next round. All changes of
            # one moment together bring nothing that was not there at once.
            limit = None


@dataclass(frozen=True, slots=True)
class Changed:
    """Keys of rows of one table that have changed.

    Attributes:
        here: The table on the source.
        there: The same on the target.
        keys: The keys, as JSON.
    """

    here: MovedTable
    there: MovedTable
    keys: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one round has brought over; empty if there was nothing.

    Attributes:
        keys: How many keys, some of them repeatedly.
        tables: Of which tables.
    """

    keys: int = 0
    tables: tuple[Changed, ...] = ()

    def __len__(self) -> int:
        return self.keys


def apply_dirty(
    source: Side,
    target: Side,
    tables: Sequence[TablePair],
    *,
    pace: Pace,
    limit: int | None = KEYS_MAX,
) -> Batch:
    """Do as `drain` does, in a transaction of the caller's on the source.

    The rows go as they are now, not what happened to them. So it does no harm to do it again, and a
    key that is committed late, under a lower number, simply comes in the next round.
    """
    dirty = sharding_tables(source.schema).dirty_key
    found = source.conn.execute(
        select(dirty.c.seq, dirty.c.table_oid, dirty.c.pk)
        .where(dirty.c.group_id == source.group_id, dirty.c.bucket == source.bucket)
        .order_by(dirty.c.seq)
        .limit(limit)
    ).all()
    if not found:
        return Batch()
    keys: dict[int, list[Any]] = defaultdict(list)
    for _, table, key in found:
        keys[table].append(key)
    changed = tuple(
        Changed(here, there, json.dumps(keys[here.oid]))
        for here, there in tables
        if here.oid in keys
    )
    with target.transaction("incoming", as_mover=True):
        # All go before any comes, so that two rows can change places in a unique column.
        for each in changed:
            _forget(target, each.there, each.keys)
        for each in changed:
            pipe(source, target, images(each.here, each.keys), (each.here, each.there), pace=pace)
    # The target has committed: now, and not before, they may be forgotten.
    numbers = bindparam("numbers", [seq for seq, *_ in found], ARRAY(BigInteger))
    source.conn.execute(delete(dirty).where(dirty.c.seq == func.any(numbers)))
    return Batch(len(found), changed)


def _is_in_the_way(error: DBAPIError | DriverError) -> bool:
    found = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(found, UniqueViolation | ExclusionViolation)


def images(here: MovedTable, listed: str) -> sql.Composable:
    """Return the query of rows as they are now, by their keys as JSON."""
    return _IMAGES.format(
        columns=here.selected,
        table=here.place,
        row=sql.Identifier(ROW),
        key=here.key_list,
        keys=here.keys_from(listed, alias="listed"),
        same_key=here.same_key("k"),
        in_bucket=here.in_bucket,
    )


def _forget(target: Side, there: MovedTable, listed: str) -> None:
    statement = _FORGET.format(
        table=there.place,
        row=sql.Identifier(ROW),
        keys=there.keys_from(listed, alias="k"),
        same_key=there.same_key("k"),
        in_bucket=there.in_bucket,
    )
    execute(target.conn, statement)
