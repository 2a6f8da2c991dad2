"""Lay out the shard map once: in the control database, then on each shard."""

from collections.abc import Collection, Sequence

from sqlalchemy import (
    ARRAY,
    Connection,
    Integer,
    Table,
    cast,
    func,
    insert,
    inspect,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import ShardMapExistsError, WrongShardError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.shard_map import ShardMap, spread_evenly
from datapatterns.sharding.schema import UNUSED, sharding_tables
from datapatterns.sharding.strategies import Hash
from datapatterns.sharding.strategies.key_bytes import encoded
from datapatterns.sharding.strategies.stored import places_of
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import DEFAULT_SCHEMA


def record_map(
    conn: Connection,
    groups: Sequence[EntityGroup],
    shards: Collection[str],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Write the maps that the control database does not have yet, as not yet in use.

    The shards that it knows must be ``shards``: others have no buckets, and would get none.

    Raises:
        ShardMapExistsError: The control database holds a map of other shards.
    """
    tables = sharding_tables(schema)
    # Whoever comes second waits here, and then finds everything.
    conn.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{schema}.shard", 0))))
    known = set(conn.scalars(select(tables.shard.c.shard_id)))
    if known and known < set(shards):
        raise ShardMapExistsError(
            "control database",
            f"it has a map of shards {sorted(known)}; let {sorted(set(shards) - known)} in with"
            " ShardCluster.add_shard()",
        )
    if known and known != set(shards):
        raise ShardMapExistsError(
            "control database", f"it has a map of shards {sorted(known)}; configure exactly these"
        )
    if not known:
        conn.execute(insert(tables.shard), [{"shard_id": shard} for shard in sorted(shards)])
    stored = tables.shard_group
    mapped = set(conn.scalars(select(stored.c.name)))
    for group in groups:
        if group.name in mapped:
            continue
        group_id = conn.scalar(
            insert(stored)
            .values(
                name=group.name,
                strategy=group.strategy.kind,
                key_type=group.key_type,
                buckets=group.strategy.buckets,
                hash_function="postgresql" if isinstance(group.strategy, Hash) else None,
                fingerprint=group.fingerprint,
                epoch=UNUSED,
            )
            .returning(stored.c.group_id)
        )
        assert group_id is not None
        owners = spread_evenly(group.strategy.buckets, list(shards))
        conn.execute(
            insert(tables.bucket_map),
            [
                {"group_id": group_id, "bucket": bucket, "shard_id": shard}
                for bucket, shard in enumerate(owners)
            ],
        )
        _record_places(conn, group_id, group, schema)


def _record_places(conn: Connection, group_id: int, group: EntityGroup, schema: str) -> None:
    """Write down what of the declared strategy may change from now on."""
    tables, places = sharding_tables(schema), places_of(group.strategy)
    ranges = [
        {
            "group_id": group_id,
            "lower_bound": b"" if bound is None else encoded(bound),
            "label": "lowest" if bound is None else str(bound),
            "bucket": bucket,
        }
        for bound, bucket in places.ranges.items()
    ]
    entries = [
        {
            "group_id": group_id,
            "kind": "entry",
            "key": encoded(key),
            "label": str(key),
            "bucket": bucket,
        }
        for key, bucket in places.entries.items()
    ]
    for table, rows in ((tables.range_map, ranges), (tables.key_map, entries)):
        if rows:
            conn.execute(insert(table), rows)


def open_maps(
    conn: Connection, maps: Collection[ShardMap], *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Let routers use maps that all shards have been told of."""
    stored = sharding_tables(schema).shard_group
    conn.execute(
        update(stored)
        .where(stored.c.group_id.in_([new.group_id for new in maps]), stored.c.epoch == UNUSED)
        .values(epoch=UNUSED + 1)
    )


def check_empty(conn: Connection, shard_id: str, tables: Collection[Table]) -> None:
    """Refuse rows that were placed before there was a map: nobody would find all of them.

    Raises:
        ShardMapExistsError: A table holds rows.
    """
    inspector = inspect(conn)
    for table in tables:
        if not inspector.has_table(table.name, schema=table.schema):
            continue
        if conn.scalar(select(select(literal(1)).select_from(table).exists())):
            raise ShardMapExistsError(
                f"shard {shard_id!r}", f"table {table.name!r} holds rows that no map has placed"
            )


def holds_buckets(conn: Connection, shard_map: ShardMap, *, schema: str = DEFAULT_SCHEMA) -> bool:
    """Return whether a shard has been told what it owns of a map."""
    digest = conn.scalar(select(library_function(schema, "map_digest", shard_map.group_id)))
    return digest is not None


def record_ownership(
    conn: Connection, shard_id: str, new: Collection[ShardMap], *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Tell a shard who it is and what it owns of maps that are not in use yet.

    Raises:
        ShardMapExistsError: It owns something else.
        WrongShardError: It is another shard.
    """
    tables = sharding_tables(schema)
    conn.execute(upsert(tables.this_shard).values(shard_id=shard_id).on_conflict_do_nothing())
    check_identity_of(conn, shard_id, schema=schema)
    for shard_map in new:
        rows = [
            {"group_id": shard_map.group_id, "bucket": bucket, "state": "owned", "epoch": 1}
            for bucket in shard_map.buckets_on(shard_id)
        ]
        conn.execute(upsert(tables.bucket).on_conflict_do_nothing(), rows)
    check_ownership(conn, shard_id, new, schema=schema)


def check_identity_of(conn: Connection, shard_id: str, *, schema: str = DEFAULT_SCHEMA) -> None:
    """Refuse a server that is not the shard it is configured as.

    Raises:
        WrongShardError: It is another one, or none.
    """
    found = conn.scalar(select(sharding_tables(schema).this_shard.c.shard_id))
    if found != shard_id:
        raise WrongShardError(expected=shard_id, found=found)


def check_ownership(
    conn: Connection, shard_id: str, maps: Collection[ShardMap], *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Refuse a shard that holds other buckets than the map says.

    Raises:
        ShardMapExistsError: It does.
    """
    for shard_map in maps:
        # With the bucket that a change under way makes or ends, and without it.
        others = cast(
            [b for b, owner in enumerate(shard_map.owners) if owner != shard_id], ARRAY(Integer)
        )
        found = conn.execute(
            select(
                library_function(schema, "owned_digest", shard_map.group_id, others, False),
                library_function(schema, "owned_digest", shard_map.group_id, others, True),
            )
        ).one()
        if shard_map.digest(shard_id) not in tuple(found):
            raise ShardMapExistsError(
                f"shard {shard_id!r}",
                f"it owns other buckets of group {shard_map.group_id} than the map says;"
                " was it a shard of another cluster, or restored?",
            )
