"""What has changed since the copy goes after it, until next to nothing is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg import Error as DriverError
from psycopg import sql
from psycopg.errors import ExclusionViolation, UniqueViolation
from sqlalchemy.exc import DBAPIError

from datapatterns.sharding.moving.copying import TablePair, pipe, places_of
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import ROW, MovedTable
from datapatterns.sharding.moving.noted import Noted, forget_noted, listed, read_noted
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sql.composing import execute

KEYS_MAX = 5_000
"""How many keys one round takes at most: both servers get them as one text."""

_FEW = 20

# A key may have left for another bucket, which the target may own: the bucket is asked for again.
_IMAGES = sql.SQL("SELECT {columns} FROM ONLY {table} AS {row} WHERE ctid = ANY ({places})")
_FORGET = sql.SQL("DELETE FROM ONLY {table} WHERE ctid = ANY ({places})")


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


def is_steady(keys: int, before: int) -> bool:
    """Return whether another round would hardly find fewer keys than this and the one before."""
    return keys <= _FEW or (keys < KEYS_MAX and 2 * keys > before > 0)


def drain(
    source: Side,
    target: Side,
    tables: Sequence[TablePair],
    *,
    pace: Pace,
    verify: Callable[[Batch], None] = lambda _: None,
) -> int:
    """Bring the rows that have changed to the target, and forget that; return how many keys.

    Args:
        source: The shard that has the bucket.
        target: The shard that gets it.
        tables: The tables of the group.
        pace: How to wait.
        verify: Is told what was brought, while the source is seen as of then; what it raises
            undoes the round.

    Raises:
        MoveTakenOverError: Another worker has taken over.
    """
    limit: int | None = KEYS_MAX
    while True:
        try:
            with source.transaction("owned", snapshot=places_of(tables)):
                batch = apply_dirty(source, target, tables, pace=pace, limit=limit)
                verify(batch)
                return len(batch)
        except (DBAPIError, DriverError) as error:
            if limit is None or not _is_in_the_way(error):
                raise
            # A row has got what another one had whose change is in the next round. All changes of
            # one moment together bring nothing that was not there at once.
            limit = None


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
    noted = read_noted(source, tables, limit=limit)
    batch = _batch(noted, tables)
    if noted.numbers:
        with target.transaction("incoming", as_mover=True):
            _bring(source, target, batch, pace=pace)
        # The target has committed: now, and not before, they may be forgotten.
        forget_noted(source, noted)
    return batch


def apply_last_dirty(
    source: Side, target: Side, tables: Sequence[TablePair], *, pace: Pace
) -> Batch:
    """Do as `apply_dirty` does with all that is left, in transactions of the caller's on both.

    Nobody may note more meanwhile, and the target commits before the source.
    """
    noted = read_noted(source, tables, limit=None)
    batch = _batch(noted, tables)
    if noted.numbers:
        _bring(source, target, batch, pace=pace)
        forget_noted(source, noted)
    return batch


def _batch(noted: Noted, tables: Sequence[TablePair]) -> Batch:
    changed = (
        Changed(here, there, listed(noted.keys[here.oid]))
        for here, there in tables
        if here.oid in noted.keys
    )
    return Batch(len(noted.numbers), tuple(changed))


def _bring(source: Side, target: Side, batch: Batch, *, pace: Pace) -> None:
    # All go before any comes, so that two rows can change places in a unique column.
    for each in batch.tables:
        _forget(target, each.there, each.keys)
    for each in batch.tables:
        pipe(source, target, images(each.here, each.keys), (each.here, each.there), pace=pace)


def _is_in_the_way(error: DBAPIError | DriverError) -> bool:
    found = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(found, UniqueViolation | ExclusionViolation)


def images(here: MovedTable, keys: str) -> sql.Composable:
    """Return the query of rows as they are now, by their keys as JSON."""
    return _IMAGES.format(
        columns=here.selected,
        table=here.place,
        row=sql.Identifier(ROW),
        places=here.with_keys(keys),
    )


def _forget(target: Side, there: MovedTable, keys: str) -> None:
    execute(target.conn, _FORGET.format(table=there.place, places=there.with_keys(keys)))
