"""Estimate how many bytes the rows of each bucket take, from a sample."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from sqlalchemy import (
    REAL,
    BigInteger,
    Connection,
    Table,
    cast,
    column,
    func,
    literal,
    select,
    tablesample,
    union_all,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from datapatterns.change_log.inspecting import table_name
from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.strategies import ShardingStrategy
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_PAGE_BYTES = 8_192
_SAMPLED_PAGES = 8_192
_ROW_HEADER_BYTES = 28


@dataclass(frozen=True, slots=True)
class TableWeight:
    """What a table takes on one shard.

    Attributes:
        total_bytes: All of it, with indexes and what is stored aside. Exact.
        sampled: The bytes of sampled rows by bucket, without indexes. Of a small table those of all
            rows.
    """

    total_bytes: int
    sampled: Mapping[int, int]

    def by_bucket(self) -> dict[int, float]:
        """Return the bytes of each bucket: its share of the sample, of the whole table."""
        seen = sum(self.sampled.values())
        return {each: self.total_bytes * taken / seen for each, taken in self.sampled.items()}


def table_bytes(conn: Connection, table: Table) -> int:
    """Return how many bytes a table takes, with its indexes, partitions, and long values."""
    return _bytes(conn, table, "pg_total_relation_size")


def weigh_table(
    conn: Connection,
    table: Table,
    shard_key: ShardKey,
    strategy: ShardingStrategy,
    *,
    sampled_pages: int = _SAMPLED_PAGES,
    schema: str = DEFAULT_SCHEMA,
) -> TableWeight:
    """Return what a table takes, and how its buckets share that.

    Reads at most about ``sampled_pages`` pages, always the same while nothing is written. The
    price: rows of a bucket that lie side by side are found together or not at all, so a bucket of
    few pages may be far off in a table of many.
    """
    pages = _bytes(conn, table, "pg_relation_size") / _PAGE_BYTES
    percent = min(100.0, 100.0 * sampled_pages / pages) if pages else 100.0
    rows = tablesample(table, func.system(cast(percent, REAL)), seed=literal(0))
    # Column by column: a row as a whole would be read together with its long values.
    widths = (func.coalesce(func.pg_column_size(each), 0) for each in rows.c)
    width = reduce(add, widths, literal(_ROW_HEADER_BYTES))
    key = shard_key.of(rows.c)
    bucket = shard_key.group.bucket_of(key, strategy=strategy, schema=schema).label("bucket")
    found = conn.execute(
        select(bucket, cast(func.sum(width), BigInteger)).select_from(rows).group_by(bucket)
    )
    return TableWeight(table_bytes(conn, table), dict(iter(found)))


def _bytes(conn: Connection, table: Table, measure: str) -> int:
    itself = cast(table_name(table), REGCLASS)
    # A table without partitions is in no tree, one with them holds nothing itself.
    below = func.pg_partition_tree(itself).table_valued(column("relid", OID), name="part")
    parts = union_all(
        select(cast(itself, OID).label("relation")),
        select(below.c.relid).where(below.c.relid != cast(itself, OID)),
    ).subquery()
    measured = getattr(func, measure)(cast(parts.c.relation, REGCLASS))
    return int(conn.scalar(select(func.coalesce(func.sum(measured), 0))) or 0)
