"""Count what a shard holds, and prove that none of it lies on the wrong shard."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Table, func, select

from datapatterns.sharding.definition import EntityGroup, ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sharding.seeing.weighing import weigh_table
from datapatterns.sharding.strategies import ShardingStrategy
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_UNDER_WAY = ("incoming", "moved")


@dataclass(frozen=True, slots=True)
class TableCount:
    """What one shard holds of one table.

    Attributes:
        table: Its name.
        group: The entity group that it belongs to.
        buckets: How many buckets of the group the shard owns.
        rows: How many rows there are.
        bytes: What the table takes there, with its indexes and long values.
        misplaced: How many rows lie in buckets that this shard neither owns nor moves: the sign of
            a write past the library, for no routed read finds them.
    """

    table: str
    group: str
    buckets: int
    rows: int
    bytes: int
    misplaced: int


@dataclass(frozen=True, slots=True)
class BucketStats:
    """What one bucket holds and is asked.

    Attributes:
        group: The entity group.
        bucket: Its number.
        rows: How many rows its tables have.
        bytes: About how many bytes they take, indexes included: from a sample of large tables.
        reads: How many statements read from it lately.
        writes: How many statements wrote to it, and objects that were flushed into it.
        busy_seconds: How long they took, as the processes saw it that sent them.
    """

    group: str
    bucket: int
    rows: int
    bytes: int
    reads: int = 0
    writes: int = 0
    busy_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardStats:
    """What one shard holds.

    Attributes:
        shard: The shard.
        tables: Its sharded tables, by name.
        buckets: The buckets that it owns, of all groups.
    """

    shard: str
    tables: tuple[TableCount, ...]
    buckets: tuple[BucketStats, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows lie in its buckets."""
        return sum(bucket.rows for bucket in self.buckets)

    @property
    def bytes(self) -> int:
        """About how many bytes they take, indexes included."""
        return sum(bucket.bytes for bucket in self.buckets)

    @property
    def reads(self) -> int:
        """How many statements read from its buckets lately."""
        return sum(bucket.reads for bucket in self.buckets)

    @property
    def writes(self) -> int:
        """How many statements and flushed objects wrote to its buckets lately."""
        return sum(bucket.writes for bucket in self.buckets)

    @property
    def busy_seconds(self) -> float:
        """How long those took together."""
        return sum(bucket.busy_seconds for bucket in self.buckets)


def count_shard(
    conn: Connection,
    shard: str,
    tables: Mapping[Table, ShardKey],
    maps: Mapping[str, ShardMap],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> ShardStats:
    """Return what the shard behind ``conn`` holds of ``tables``. The price: it reads them whole.

    One snapshot is needed, as of REPEATABLE READ: a bucket may come or go in between.
    """
    held = sharding_tables(schema).bucket
    states = {
        (row.group_id, row.bucket): row.state
        for row in conn.execute(select(held.c.group_id, held.c.bucket, held.c.state))
    }
    counts = []
    rows_in = {name: Counter[int]() for name in maps}
    bytes_in = {name: Counter[int]() for name in maps}
    owned = {
        name: [b for b in range(len(m.owners)) if states.get((m.group_id, b)) == "owned"]
        for name, m in maps.items()
    }
    for table, shard_key in sorted(tables.items(), key=lambda item: item[0].name):
        name = shard_key.group.name
        group_id, strategy = maps[name].group_id, maps[name].strategy
        rows = _rows(conn, table, shard_key, strategy, schema=schema)
        weight = weigh_table(conn, table, shard_key, strategy, schema=schema)
        at_home = {"owned", *_UNDER_WAY}
        misplaced = sum(n for b, n in rows.items() if states.get((group_id, b)) not in at_home)
        counts.append(
            TableCount(
                table.name, name, len(owned[name]), rows.total(), weight.total_bytes, misplaced
            )
        )
        rows_in[name].update(rows)
        bytes_in[name].update({b: round(taken) for b, taken in weight.by_bucket().items()})
    buckets = (
        BucketStats(name, bucket, rows_in[name][bucket], bytes_in[name][bucket])
        for name in sorted(maps)
        for bucket in owned[name]
    )
    return ShardStats(shard, tuple(counts), tuple(buckets))


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
            found.update(_rows(conn, table, shard_key, strategy, schema=schema))
    return found


def bytes_by_bucket(
    conn: Connection,
    tables: Mapping[Table, ShardKey],
    group: EntityGroup,
    strategy: ShardingStrategy,
    *,
    schema: str = DEFAULT_SCHEMA,
) -> dict[int, float]:
    """Return about how many bytes each bucket takes on the shard behind ``conn``, from samples."""
    found: dict[int, float] = {}
    for table, shard_key in tables.items():
        if shard_key.group is group:
            weight = weigh_table(conn, table, shard_key, strategy, schema=schema)
            for bucket, taken in weight.by_bucket().items():
                found[bucket] = found.get(bucket, 0.0) + taken
    return found


def _rows(
    conn: Connection,
    table: Table,
    shard_key: ShardKey,
    strategy: ShardingStrategy,
    *,
    schema: str,
) -> Counter[int]:
    column = shard_key.of(table.c)
    bucket = shard_key.group.bucket_of(column, strategy=strategy, schema=schema).label("bucket")
    counted = select(bucket, func.count()).select_from(table).group_by(bucket)
    found: Counter[int] = Counter()
    for number, rows in conn.execute(counted):
        found[number] += rows
    return found
