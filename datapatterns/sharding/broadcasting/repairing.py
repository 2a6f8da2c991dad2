"""Look at all copies of a broadcast table while nobody writes to them, and mend those that differ.

What no session can prevent, such as SQL text on one shard, is found here.
"""

from contextlib import closing

from sqlalchemy import Connection, Table, inspect

from datapatterns.errors import SettingsError, ShardedTableError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.atomic.parts import Parts
from datapatterns.sharding.broadcasting.comparing import (
    CopyComparison,
    CopyDifference,
    difference_between,
    digest_of,
    rows_of,
    typed_keys,
)
from datapatterns.sharding.broadcasting.copies import check_shape, lock_copy
from datapatterns.sharding.broadcasting.guarding import writing_all
from datapatterns.sharding.broadcasting.images import (
    TableShape,
    deletions,
    images_of,
    put_images,
)
from datapatterns.sharding.broadcasting.sequences import last_numbers, raise_numbers

LOCK_SECONDS = 5.0


class Copies:
    """All copies of one broadcast table, locked for a transaction.

    Args:
        access: The way to the shards.
        parts: The transaction.
        table: The table.
        source: The shard to compare with; the first one unless it is said.
    """

    def __init__(
        self, access: ShardAccess, parts: Parts, table: Table, *, source: str | None
    ) -> None:
        shards = access.copies.shards()
        self._access = access
        self._table = table
        self._source = source or shards[0]
        if self._source not in shards:
            raise SettingsError("source", f"{source!r} holds no copy; {', '.join(shards)} do")
        self._conns: dict[str, Connection] = {}
        shapes: dict[str, TableShape] = {}
        for shard in shards:
            with access.asking(shard):
                self._conns[shard] = parts.on(shard)
                shapes[shard] = lock_copy(self._conns[shard], table)
            check_shape(table, shard, shapes[shard], shapes[shards[0]])
            if shard == shards[0]:
                access.copies.check(shards)
        self._shape = shapes[self._source]

    def compare(self) -> CopyComparison:
        """Return how the copies differ; reads them whole, twice if they do."""
        digests = {}
        for shard, conn in self._conns.items():
            with self._access.asking(shard):
                digests[shard] = digest_of(conn, self._table, self._shape)
        differing = [s for s, digest in digests.items() if digest != digests[self._source]]
        differences = {}
        if differing:
            right = rows_of(self._conns[self._source], self._table, self._shape)
            for shard in differing:
                found = rows_of(self._conns[shard], self._table, self._shape)
                differences[shard] = difference_between(right, found)
        rows = {shard: count for shard, (count, _) in digests.items()}
        return CopyComparison(self._table.name, self._source, rows, differences)

    def mend(self, comparison: CopyComparison) -> None:
        """Make the copies that differ be as the source's, and numbers go on after its own."""
        right = self._conns[self._source]
        numbers = last_numbers(right, self._table)
        for shard, conn in self._conns.items():
            if shard == self._source:
                continue
            with self._access.asking(shard), writing_all(conn):
                if (difference := comparison.differences.get(shard)) is not None:
                    self._mend(shard, conn, right, difference)
                raise_numbers(conn, self._table, numbers)

    def _mend(
        self, shard: str, conn: Connection, right: Connection, difference: CopyDifference
    ) -> None:
        surplus = typed_keys(conn, self._table, difference.surplus)
        for statement in deletions(self._table, surplus):
            conn.execute(statement).close()
        wanted = typed_keys(right, self._table, {*difference.missing, *difference.changed})
        images = images_of(right, self._table, self._shape, wanted)
        put_images(conn, self._table, self._shape, images, shard=shard)


def verify_copies(
    access: ShardAccess, table: type | Table, *, source: str | None = None
) -> CopyComparison:
    """Return how the copies of a broadcast table differ; its writers wait meanwhile."""
    with closing(Parts(access, lock_seconds=LOCK_SECONDS)) as parts:
        return Copies(access, parts, _checked(access, table), source=source).compare()


def repair_copies(
    access: ShardAccess, table: type | Table, *, source: str, dry_run: bool = False
) -> CopyComparison:
    """Make all copies of a broadcast table equal to one; return how they differed."""
    with closing(Parts(access, lock_seconds=LOCK_SECONDS)) as parts:
        copies = Copies(access, parts, _checked(access, table), source=source)
        found = copies.compare()
        if not dry_run:
            copies.mend(found)
            parts.commit()
        return found


def _checked(access: ShardAccess, table: type | Table) -> Table:
    found: object = table if isinstance(table, Table) else inspect(table).local_table
    if not isinstance(found, Table) or not access.placements.is_broadcast(found):
        raise ShardedTableError(str(found), "it is no broadcast table; declare it as Broadcast()")
    return found
