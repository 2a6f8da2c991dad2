"""Show how rows are distributed, and prove that none lies on the wrong shard."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Table, and_, func, select

from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sharding.strategies import ShardingStrategy
from datapatterns.sql.metadata import DEFAULT_SCHEMA


@dataclass(frozen=True, slots=True)
class TableCount:
    """What one shard holds of one table.

    Attributes:
        table: Its name.
        group: The entity group that it belongs to.
        buckets: How many buckets of the group the shard owns.
        rows: How many rows there are.
        misplaced: How many of them lie in buckets that this shard does not own: the sign of a
            write past the library, for no routed read finds them.
    """

    table: str
    group: str
    buckets: int
    rows: int
    misplaced: int


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What one shard holds.

    Attributes:
        shard: The shard.
        tables: Its sharded tables, by name.
    """

    shard: str
    tables: tuple[TableCount, ...]


def count_rows(
    conn: Connection,
    tables: Mapping[Table, ShardKey],
    maps: Mapping[str, ShardMap],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> tuple[TableCount, ...]:
    """Return what the shard behind ``conn`` holds of ``tables``. The price: it reads them whole."""
    held = sharding_tables(schema).bucket
    counts = []
    for table, shard_key in sorted(tables.items(), key=lambda item: item[0].name):
        group = shard_key.group
        in_group = and_(held.c.group_id == maps[group.name].group_id, held.c.state == "owned")
        at_home = and_(
            in_group,
            held.c.bucket
            == group.bucket_of(
                table.c[shard_key.column], strategy=maps[group.name].strategy, schema=schema
            ),
        )
        rows, placed = conn.execute(
            select(func.count(), func.count(held.c.bucket)).select_from(
                table.outerjoin(held, at_home)
            )
        ).one()
        owned = conn.scalar(select(func.count()).select_from(held).where(in_group))
        counts.append(TableCount(table.name, group.name, owned or 0, rows, rows - placed))
    return tuple(counts)


def rows_by_bucket(
    conn: Connection,
    tables: Mapping[Table, ShardKey],
    group: EntityGroup,
    strategy: ShardingStrategy,
    *,
    schema: str = DEFAULT_SCHEMA,
) -> Counter[int]:
    """Return how many rows of a group's tables lie in each bucket on the shard behind ``conn``.

    The price: it reads them whole.
    """
    found: Counter[int] = Counter()
    for table, shard_key in tables.items():
        if shard_key.group is group:
            column = table.c[shard_key.column]
            bucket = group.bucket_of(column, strategy=strategy, schema=schema).label("bucket")
            counted = select(bucket, func.count()).select_from(table).group_by(bucket)
            for number, rows in conn.execute(counted):
                found[number] += rows
    return found
