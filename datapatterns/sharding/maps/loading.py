"""Read the shard map from the control database."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, and_, func, select

from datapatterns.errors import (
    GroupMismatchError,
    SettingsError,
    ShardMapCorruptError,
    ShardMapMissingError,
)
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import UNUSED, sharding_tables
from datapatterns.sharding.strategies import KeyPart, ShardingStrategy
from datapatterns.sharding.strategies.key_bytes import decoded
from datapatterns.sharding.strategies.stored import StoredPlaces, range_of, routing_strategy
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_OF_GROUP = ("name", "group_id", "epoch", "fingerprint", "strategy", "key_type", "buckets")
_OF_BUCKET = ("bucket", "shard_id", "parent", "merged_into", "assigned_to", "generation")


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
    # One statement, so one snapshot: the rows and the epoch agree.
    rows = conn.execute(_stored_maps([group.name for group in groups], schema)).all()
    maps = {}
    for group in groups:
        mine = [row for row in rows if row.name == group.name]
        if not mine or (mine[0].epoch == UNUSED and not unused):
            raise ShardMapMissingError(group.name)
        _check_declaration(group, mine[0])
        owners = {row.bucket: row.shard_id for row in mine}
        parents = {row.bucket: row.parent for row in mine if row.parent is not None}
        maps[group.name] = ShardMap(
            mine[0].group_id,
            mine[0].epoch,
            _stored_strategy(group, mine),
            _checked_owners(group, owners, shards, placed=mine[0].buckets),
            {row.bucket: row.generation for row in mine if row.generation},
            _successors(mine, parents),
            frozenset(row.bucket for row in mine if row.merged_into is not None),
            parents,
        )
    return maps


def load_epochs(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> dict[str, int]:
    """Return the epoch of each group by its name."""
    stored = sharding_tables(schema).shard_group
    return {row.name: row.epoch for row in conn.execute(select(stored.c.name, stored.c.epoch))}


def _stored_maps(names: Sequence[str], schema: str) -> Select[*tuple[Any, ...]]:
    tables = sharding_tables(schema)
    stored, placed = tables.shard_group, tables.bucket_map
    ranged, named = tables.range_map, tables.key_map
    keys = (
        select(
            named.c.group_id,
            named.c.bucket,
            func.array_agg(named.c.key).filter(named.c.kind == "pin").label("pins"),
            func.array_agg(named.c.key).filter(named.c.kind == "entry").label("entries"),
        )
        .group_by(named.c.group_id, named.c.bucket)
        .subquery()
    )
    return (
        select(
            *(stored.c[name] for name in _OF_GROUP),
            *(placed.c[name] for name in _OF_BUCKET),
            ranged.c.lower_bound,
            keys.c.pins,
            keys.c.entries,
        )
        .join_from(stored, placed, placed.c.group_id == stored.c.group_id)
        .outerjoin(ranged, _same_bucket(ranged, placed))
        .outerjoin(keys, _same_bucket(keys, placed))
        .where(stored.c.name.in_(names))
        .order_by(stored.c.name, placed.c.bucket)
    )


def _same_bucket(one: FromClause, other: FromClause) -> ColumnElement[bool]:
    return and_(one.c.group_id == other.c.group_id, one.c.bucket == other.c.bucket)


def _stored_strategy(group: EntityGroup, rows: Sequence[Any]) -> ShardingStrategy:
    key_type = group.python_type
    ranges: dict[bytes, int] = {}
    entries: dict[KeyPart, int] = {}
    pins: dict[KeyPart, int] = {}
    for row in rows:
        if row.lower_bound is not None:
            ranges[bytes(row.lower_bound)] = row.bucket
        entries |= {decoded(bytes(key), key_type): row.bucket for key in row.entries or ()}
        pins |= {decoded(bytes(key), key_type): row.bucket for key in row.pins or ()}
        holds_keys = row.lower_bound is not None or row.entries or row.pins
        if holds_keys and len(group.key_types) > 1:
            raise ShardMapCorruptError(
                group.name, f"bucket {row.bucket} has keys of its own, and they are two columns"
            )
        if holds_keys and row.merged_into is not None:
            raise ShardMapCorruptError(
                group.name, f"bucket {row.bucket} is merged into another, and has keys"
            )
    if range_of(group.strategy) is not None and b"" not in ranges:
        raise ShardMapCorruptError(group.name, "no range holds the lowest keys")
    # The empty bound is below all; the empty text, whose bytes are none either, begins no range.
    ordered = {
        decoded(bound, key_type) if bound else None: ranges[bound] for bound in sorted(ranges)
    }
    return routing_strategy(group.strategy, StoredPlaces(ordered, entries, pins))


def _successors(rows: Sequence[Any], parents: Mapping[int, int]) -> dict[int, frozenset[int]]:
    found: dict[int, set[int]] = {}
    for bucket, parent in parents.items():
        found.setdefault(parent, set()).add(bucket)
    for row in rows:
        if row.merged_into is not None:
            found.setdefault(row.bucket, set()).add(row.merged_into)
        if row.assigned_to:
            found.setdefault(row.bucket, set()).update(row.assigned_to)
    return {bucket: frozenset(after) for bucket, after in found.items()}


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
    group: EntityGroup, owners: Mapping[int, str], shards: Collection[str], *, placed: int
) -> tuple[str, ...]:
    # Those that the map began with, and those that have been split off since, without a hole.
    expected = max(placed, max(owners) + 1)
    if list(owners) != list(range(expected)):
        raise ShardMapCorruptError(group.name, f"{len(owners)} of {expected} buckets have an owner")
    if unknown := set(owners.values()).difference(shards):
        raise SettingsError(
            "shards", f"the map of group {group.name!r} names {sorted(unknown)}; add their URLs"
        )
    return tuple(owners.values())
