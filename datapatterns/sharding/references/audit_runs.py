"""Read all rows of a table over shards once, in pieces, while buckets move and are split.

A piece is what a shard has of some buckets from some primary key on. A bucket that has changed its
shard is read anew from its beginning: shards may order text otherwise. So a row may be read twice,
and none is left out.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, func, literal, select, tuple_

from datapatterns.errors import StaleShardMapError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.maps.elsewhere import not_elsewhere
from datapatterns.sharding.maps.ownership import agrees_with_map, owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.references.declared import PlacedReference
from datapatterns.sharding.references.definition import Values
from datapatterns.sharding.routing.footprint import leaf_of
from datapatterns.sharding.routing.guarded import with_guard
from datapatterns.transactions import fresh_reads, reading

_ATTEMPTS: Final = 600
_PAUSE_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """A row that refers to another.

    Attributes:
        shard: Where it was.
        primary: Its primary key.
        values: What it refers to.
    """

    shard: str
    primary: Values
    values: Values


@dataclass(frozen=True, slots=True)
class _Run:
    """Buckets of one shard, read up to a primary key."""

    shard: str
    buckets: frozenset[int]
    after: Values | None
    shard_map: ShardMap


class AuditRuns:
    """The rows of a reference that refer to something.

    Args:
        access: The way to the shards.
        reference: Whose rows.
        rows_at_once: How many are read at once.
    """

    def __init__(self, access: ShardAccess, reference: PlacedReference, rows_at_once: int) -> None:
        self._access = access
        self._reference = reference
        self._rows_at_once = rows_at_once
        self._runs: deque[_Run] = deque()
        self._attempts = 0
        newest = self._newest_map()
        self._add(newest, newest.buckets)

    def next_rows(self) -> list[Row] | None:
        """Return some more rows; None when there are no more.

        Raises:
            ShardUnavailableError: A shard does not answer.
            StaleShardMapError: A bucket has been nobody's for half a minute.
        """
        if not self._runs:
            return None
        run = self._runs.popleft()
        try:
            rows = self._read(run)
        except StaleShardMapError:  # the map has been read again
            self._attempts += 1
            if self._attempts > _ATTEMPTS:
                raise
            self._pause(run.shard)
            self._follow(run)
            return []
        self._attempts = 0
        if len(rows) == self._rows_at_once:
            self._runs.appendleft(_Run(run.shard, run.buckets, rows[-1].primary, run.shard_map))
        return rows

    def _newest_map(self) -> ShardMap:
        return self._access.router.map_of(self._reference.child_key.group)

    def _add(self, shard_map: ShardMap, buckets: Iterable[int]) -> None:
        by_shard: dict[str, set[int]] = {}
        for bucket in buckets:
            by_shard.setdefault(shard_map.owners[bucket], set()).add(bucket)
        for shard, mine in sorted(by_shard.items()):
            self._runs.append(_Run(shard, frozenset(mine), None, shard_map))

    def _follow(self, run: _Run) -> None:
        """Go on with a run under the map of now; what has moved or was split begins anew."""
        new = self._newest_map()
        kept = {bucket for bucket in run.buckets if self._is_same(run, new, bucket)}
        if kept:
            self._runs.appendleft(_Run(run.shard, frozenset(kept), run.after, new))
        gone = run.buckets - kept
        self._add(new, frozenset[int]().union(*(new.buckets_since(bucket) for bucket in gone)))

    @staticmethod
    def _is_same(run: _Run, new: ShardMap, bucket: int) -> bool:
        return (
            new.buckets_since(bucket) == {bucket}
            and new.owners[bucket] == run.shard
            and new.generations_of([bucket]) == run.shard_map.generations_of([bucket])
        )

    def _read(self, run: _Run) -> list[Row]:
        declared = self._reference.declared
        primary: list[Column[Any]] = [*declared.child_table.primary_key.columns]
        guard, confined = self._conditions(run)
        columns = [*primary, *declared.child]
        statement = (
            select(*(column.label(f"c{at}") for at, column in enumerate(columns)))
            .where(confined, *(column.is_not(None) for column in declared.child))
            .order_by(*primary)
            .limit(self._rows_at_once)
        )
        if run.after is not None:
            bounds = [literal(v, c.type) for v, c in zip(run.after, primary, strict=True)]
            statement = statement.where(tuple_(*primary) > tuple_(*bounds))
        with (
            self._access.asking(run.shard),
            fresh_reads(self._access.engines[run.shard]) as conn,
            reading(conn),
        ):
            rows = conn.execute(with_guard(statement, guard)).all()
        width = len(primary)
        return [Row(run.shard, tuple(row[:width]), tuple(row[width:])) for row in rows]

    def _conditions(self, run: _Run) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        """Return what the shard must own, and which of its rows are meant."""
        shard_map, schema = run.shard_map, self._access.schema
        table, key = self._reference.declared.child_table, self._reference.child_key
        if run.buckets == {*shard_map.buckets_on(run.shard)}:
            leaf = leaf_of(table, self._access.placements)
            confined = not_elsewhere(leaf, shard_map, run.shard, schema=schema)
            return agrees_with_map(shard_map, run.shard, schema=schema), confined
        bucket = key.group.bucket_of(key.of(table.c), strategy=shard_map.strategy, schema=schema)
        owned = owns_buckets(shard_map, run.buckets, schema=schema)
        return owned, bucket.in_(sorted(run.buckets))

    def _pause(self, shard: str) -> None:
        """Wait for a bucket that is being handed over; on a server, which can be interrupted."""
        with (
            self._access.asking(shard),
            fresh_reads(self._access.engines[shard]) as conn,
            reading(conn),
        ):
            conn.execute(select(func.pg_sleep(_PAUSE_SECONDS))).close()
