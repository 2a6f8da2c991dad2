"""Write down what processes have counted, read it back, and forget it in time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Integer,
    Table,
    Text,
    delete,
    func,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import TypeEngine

from datapatterns.sharding.key_types import written_key
from datapatterns.sharding.schema import load_tables
from datapatterns.sharding.seeing.load_counts import BucketCount, LoadCounts
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.unnesting import unnested

_KEYS_MAX = 64
_KEY_CHARACTERS_MAX = 500
_FORGOTTEN_MAX = 10_000


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """What is known of one key, in a number of minutes.

    Attributes:
        key: As it was written down.
        hits_min: It had at least so many hits.
        hits_max: And at most so many.
        busy_us: How long they took, as far as they were counted.
    """

    key: str
    hits_min: int
    hits_max: int
    busy_us: int


def record_load(
    conn: Connection, counted: Mapping[int, LoadCounts], *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Add what was counted of each group, by its id, to what others have written down."""
    tables = load_tables(schema)
    # In one order, so that processes which write the same rows wait for each other in a line.
    buckets = [
        (group_id, bucket, count.reads, count.writes, count.busy_us)
        for group_id, counts in sorted(counted.items())
        for bucket, count in sorted(counts.buckets.items())
    ]
    keys, totals = [], []
    for group_id, counts in sorted(counted.items()):
        held = counts.keys.trimmed(_KEYS_MAX)
        totals.append((group_id, held.total, held.floor))
        written = {written_key(hitter.key): hitter for hitter in held.top(_KEYS_MAX)}
        keys += [
            (group_id, key, hitter.hits, hitter.max_error, held.floor, hitter.busy_us)
            for key, hitter in sorted(written.items())
            if is_storable(key)
        ]
    _add(conn, tables.bucket_load, buckets, summed=("reads", "writes", "busy_us"))
    _add(conn, tables.hot_key, keys, summed=("hits", "max_error", "floor", "busy_us"))
    _add(conn, tables.hot_key_total, totals, summed=("hits", "floor"))


def forget_load(conn: Connection, *, kept: timedelta, schema: str = DEFAULT_SCHEMA) -> int:
    """Delete what is older than ``kept``, the oldest first; return how many rows that were.

    So many of each table that it takes no long lock. Nothing while another process is at it.
    """
    turn = func.hashtextextended(f"{schema}.bucket_load", 0)
    if not conn.scalar(select(func.pg_try_advisory_xact_lock(turn))):
        return 0
    tables = load_tables(schema)
    deleted = 0
    for table in (tables.bucket_load, tables.hot_key, tables.hot_key_total):
        key = tuple_(*table.primary_key.columns)
        old = (
            select(*table.primary_key.columns)
            .where(table.c.minute < _this_minute() - kept)
            .order_by(table.c.minute)
            .limit(_FORGOTTEN_MAX)
        )
        deleted += conn.execute(delete(table).where(key.in_(old))).rowcount
    return deleted


def load_by_bucket(
    conn: Connection, group_id: int, *, within: timedelta, schema: str = DEFAULT_SCHEMA
) -> dict[int, BucketCount]:
    """Return what each bucket of a group was asked lately; those that were not are left out."""
    table = load_tables(schema).bucket_load
    sums = [func.sum(table.c[name]).cast(BigInteger) for name in ("reads", "writes", "busy_us")]
    rows = conn.execute(
        select(table.c.bucket, *sums)
        .where(table.c.group_id == group_id, table.c.minute > func.clock_timestamp() - within)
        .group_by(table.c.bucket)
    )
    return {bucket: BucketCount(*counts) for bucket, *counts in rows}


def load_by_key(
    conn: Connection,
    group_id: int,
    *,
    within: timedelta,
    limit: int,
    schema: str = DEFAULT_SCHEMA,
) -> tuple[list[KeyLoad], int]:
    """Return the keys of a group that were asked for most lately, and the hits of all keys."""
    tables = load_tables(schema)
    since = func.clock_timestamp() - within

    def summed(column: ColumnElement[Any]) -> ColumnElement[int]:
        return func.coalesce(func.sum(column), 0).cast(BigInteger)

    hot, total = tables.hot_key.c, tables.hot_key_total.c
    hits = summed(hot.hits)
    # First the keys: what is written in between only makes their bounds wider.
    found = conn.execute(
        select(hot.key, hits, summed(hot.max_error), summed(hot.floor), summed(hot.busy_us))
        .where(hot.group_id == group_id, hot.minute > since)
        .group_by(hot.key)
        .order_by(hits.desc(), hot.key)
        .limit(limit)
    ).all()
    all_hits, floor = conn.execute(
        select(summed(total.hits), summed(total.floor)).where(
            total.group_id == group_id, total.minute > since
        )
    ).one()
    keys = [
        # A sketch that does not hold the key may have seen it as often as its floor says.
        KeyLoad(key, most - error, most + floor - held, busy_us)
        for key, most, error, held, busy_us in found
    ]
    return keys, all_hits


def is_storable(key: str) -> bool:
    """Return whether a key fits into an index, and is text that a server takes."""
    if len(key) > _KEY_CHARACTERS_MAX or "\0" in key:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in key)


def _add(
    conn: Connection, table: Table, rows: Sequence[Sequence[Any]], *, summed: tuple[str, ...]
) -> None:
    if not rows:
        return
    names = [column.name for column in table.columns if column.name != "minute"]
    types: dict[str, TypeEngine[Any]] = {"key": Text(), "group_id": Integer(), "bucket": Integer()}
    given = unnested("given", {name: types.get(name, BigInteger()) for name in names})
    written = upsert(table).from_select(
        ["minute", *names],
        select(_this_minute(), *(given.c[name] for name in names)),
    )
    added = {name: table.c[name] + written.excluded[name] for name in summed}
    lists = zip(*rows, strict=True)
    conn.execute(
        written.on_conflict_do_update(index_elements=[*table.primary_key.columns], set_=added),
        {f"given_{name}": list(values) for name, values in zip(names, lists, strict=True)},
    )


def _this_minute() -> ColumnElement[Any]:
    """The server's: the clocks of processes may differ."""
    return func.date_trunc(literal("minute"), func.now(), type_=DateTime(timezone=True))
