"""Triggers that a bucket leaves behind on a shard: they refuse who still writes to it there."""

from collections.abc import Sequence

from sqlalchemy import ARRAY, Connection, bindparam, text
from sqlalchemy.dialects.postgresql import OID

from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.moving.capturing import predicate_digest, reinstall
from datapatterns.sharding.moving.holding import Side
from datapatterns.sharding.moving.moved_table import MovedTable
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.transactions import reading

_TRIGGERS = text("""
SELECT t.tgrelid::int8 AS table_oid, encode(t.tgargs, 'escape') AS arguments
FROM pg_catalog.pg_trigger t
WHERE t.tgrelid = ANY (:tables) AND starts_with(t.tgname, :prefix) AND t.tgname LIKE '%\\_insert'
""")
_ENDS = "\\000"
"""What ends each argument of a trigger, as the server shows it."""


def tombstones(
    conn: Connection, group_id: int, tables: Sequence[MovedTable]
) -> dict[int, dict[int, str]]:
    """Return the buckets that have triggers on these tables, in the caller's transaction.

    Of each bucket the tables, and a digest of the condition that its triggers were made of.
    """
    found: dict[int, dict[int, str]] = {}
    mine = bindparam("tables", [table.oid for table in tables], ARRAY(OID))
    prefix = {"prefix": f"zz_datapatterns_{group_id}_"}
    for row in conn.execute(_TRIGGERS.bindparams(mine), prefix):
        _, bucket, digest, *_ = row.arguments.split(_ENDS)
        found.setdefault(int(bucket), {})[row.table_oid] = digest
    return found


def renew_tombstones(
    side: Side, tables: Sequence[MovedTable], shard_map: ShardMap, *, pace: Pace
) -> None:
    """Let triggers of other buckets hold for the keys that are theirs today.

    A bucket that was split, or lost a key to a pin, left triggers behind that still hold for all
    that it had. They would refuse what is now arriving under another number.

    Raises:
        MoveBlockedError: A transaction holds one of the tables for long.
        MoveTakenOverError: Another worker has taken over.
    """
    with reading(side.conn):
        found = tombstones(side.conn, shard_map.group_id, tables)
    for bucket, digests in sorted(found.items()):
        wanted = {
            table.oid: predicate_digest(table, shard_map, bucket, schema=side.schema)
            for table in tables
            if table.oid in digests
        }
        if bucket != side.bucket and wanted != digests:
            old = [table for table in tables if table.oid in digests]
            reinstall(side, old, shard_map, bucket, pace=pace)
