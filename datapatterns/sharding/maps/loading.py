"""Read the shard map from the control database."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from datapatterns.errors import (
    GroupMismatchError,
    SettingsError,
    ShardMapCorruptError,
    ShardMapMissingError,
)
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import UNUSED, sharding_tables
from datapatterns.sql.metadata import DEFAULT_SCHEMA


def load_maps(
    conn: Connection,
    groups: Sequence[EntityGroup],
    *,
    shards: Collection[str],
    unused: bool = False,
    schema: str = DEFAULT_SCHEMA,
) -> dict[str, ShardMap]:
    """Return the maps of ``groups`` by their names, each as of one moment.

    Args:
        conn: A connection to the control database.
        groups: What the code declares.
        shards: The shards that are configured.
        unused: Whether maps count that not all shards have been told of.
        schema: Where the library's tables live.

    Raises:
        GroupMismatchError: A group is declared otherwise than its data was placed.
        SettingsError: A map names a shard that is not among ``shards``.
        ShardMapCorruptError: A bucket belongs to nobody.
        ShardMapMissingError: A group has no map.
    """
    tables = sharding_tables(schema)
    stored, placed = tables.shard_group, tables.bucket_map
    # One statement, so one snapshot: the rows and the epoch agree.
    rows = conn.execute(
        select(
            stored.c.name,
            stored.c.group_id,
            stored.c.epoch,
            stored.c.fingerprint,
            stored.c.strategy,
            stored.c.key_type,
            stored.c.buckets,
            placed.c.bucket,
            placed.c.shard_id,
        )
        .join_from(stored, placed, placed.c.group_id == stored.c.group_id)
        .where(stored.c.name.in_([group.name for group in groups]))
        .order_by(stored.c.name, placed.c.bucket)
    ).all()
    maps = {}
    for group in groups:
        mine = [row for row in rows if row.name == group.name]
        if not mine or (mine[0].epoch == UNUSED and not unused):
            raise ShardMapMissingError(group.name)
        _check_declaration(group, mine[0])
        owners = {row.bucket: row.shard_id for row in mine}
        maps[group.name] = ShardMap(
            mine[0].group_id, mine[0].epoch, group.strategy, _checked_owners(group, owners, shards)
        )
    return maps


def load_epochs(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> dict[str, int]:
    """Return the epoch of each group by its name."""
    stored = sharding_tables(schema).shard_group
    return {row.name: row.epoch for row in conn.execute(select(stored.c.name, stored.c.epoch))}


def _check_declaration(group: EntityGroup, stored: Any) -> None:  # noqa: ANN401 -- a row
    if stored.fingerprint != group.fingerprint:
        placed = f"{stored.strategy} of {stored.key_type} keys in {stored.buckets} buckets"
        raise GroupMismatchError(
            group.name,
            declared=f"{group.strategy} of {group.key_type} keys",
            # The same words may stand for other bounds or lists.
            stored=placed if stored.strategy == "hash" else f"another {placed}",
        )


def _checked_owners(
    group: EntityGroup, owners: Mapping[int, str], shards: Collection[str]
) -> tuple[str, ...]:
    if list(owners) != list(range(group.strategy.buckets)):
        raise ShardMapCorruptError(
            group.name, f"{len(owners)} of {group.strategy.buckets} buckets have an owner"
        )
    if unknown := set(owners.values()).difference(shards):
        raise SettingsError(
            "shards", f"the map of group {group.name!r} names {sorted(unknown)}; add their URLs"
        )
    return tuple(owners.values())
