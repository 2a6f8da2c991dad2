"""Buckets that are moving: for a while their rows lie on two shards, and one of those owns them."""

from sqlalchemy import ColumnElement, Connection, and_, select, true

from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.routing.key_conditions import Leaf
from datapatterns.sharding.schema import sharding_tables


def load_moving(conn: Connection, *, schema: str) -> dict[int, frozenset[int]]:
    """Return the buckets of each group that a move is not done with, from the control database."""
    moves = sharding_tables(schema).bucket_move
    live = select(moves.c.group_id, moves.c.bucket).where(
        moves.c.state.not_in(("cleaned", "aborted"))
    )
    found: dict[int, set[int]] = {}
    for group_id, bucket in conn.execute(live):
        found.setdefault(group_id, set()).add(bucket)
    return {group_id: frozenset(buckets) for group_id, buckets in found.items()}


def not_elsewhere(
    leaf: Leaf, shard_map: ShardMap, shard_id: str, *, schema: str
) -> ColumnElement[bool]:
    """Return the condition that a row lies in no bucket that moves and is another shard's.

    It holds for rows of an outer join in which the table is missing.
    """
    group, column = leaf.shard_key.group, leaf.shard_key.of(leaf.used.c)
    return and_(
        true(),
        *(
            group.predicate(column, bucket, strategy=shard_map.strategy, schema=schema).is_not(
                true()
            )
            for bucket in shard_map.elsewhere(shard_id)
        ),
    )
