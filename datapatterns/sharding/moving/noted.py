"""Which rows the triggers of a moving bucket have noted, and that they are brought over."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ARRAY, BigInteger, Text, bindparam, cast, delete, func, select

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.schema import sharding_tables


@dataclass(frozen=True, slots=True)
class Noted:
    """What was noted, as far as it was read.

    Attributes:
        numbers: What the notes are numbered.
        keys: The keys of rows, as JSON, by the number of their table on the source.
    """

    numbers: Sequence[int]
    keys: Mapping[int, Sequence[str]]


def read_noted(source: Side, tables: Sequence[TablePair], *, limit: int | None) -> Noted:
    """Return the oldest notes of the bucket, in the caller's transaction.

    Raises:
        MoveRefusedError: Some are of a table that does not move, such as one whose name another
            table has now.
    """
    dirty = sharding_tables(source.schema).dirty_key
    found = source.conn.execute(
        # As text: Python's JSON would round a number of more than 17 digits, and nothing would be
        # found by it.
        select(dirty.c.seq, dirty.c.table_oid, cast(dirty.c.pk, Text))
        .where(dirty.c.group_id == source.group_id, dirty.c.bucket == source.bucket)
        .order_by(dirty.c.seq)
        .limit(limit)
    ).all()
    keys: dict[int, list[str]] = defaultdict(list)
    for _, table, key in found:
        keys[table].append(key)
    # To forget them would be to lose what they tell of.
    if unknown := sorted(keys.keys() - {here.oid for here, _ in tables}):
        raise MoveRefusedError(
            f"table number {unknown[0]} on shard {source.shard}",
            "its rows have changed in the bucket, and it is no table that moves (any more); the"
            " bucket stays, move it again",
        )
    return Noted([seq for seq, *_ in found], keys)


def forget_noted(source: Side, noted: Noted) -> None:
    """Forget what was read, in the same transaction: the target has it, and has committed."""
    dirty = sharding_tables(source.schema).dirty_key
    numbers = bindparam("numbers", noted.numbers, ARRAY(BigInteger))
    source.conn.execute(delete(dirty).where(dirty.c.seq == func.any(numbers)))


def listed(keys: Iterable[str]) -> str:
    """Return keys, each as JSON, as a list of JSON."""
    return f"[{','.join(keys)}]"
