"""Ask every shard what it holds, and the control database what it was asked."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, TypeAlias

from sqlalchemy import Connection, Engine, select

from datapatterns.errors import SettingsError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.engines import tables_needed
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sharding.seeing.counting import (
    BucketStats,
    ShardStats,
    bytes_by_bucket,
    count_shard,
    rows_by_bucket,
)
from datapatterns.sharding.seeing.load_counts import BucketCount
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan
from datapatterns.sharding.seeing.rebalancing import plan_moves
from datapatterns.sharding.seeing.recording import load_by_bucket, load_by_key
from datapatterns.sharding.seeing.snapshots import on_each
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.transactions import reading

Measure: TypeAlias = Literal["rows", "bytes", "load"]
"""What a bucket is weighed by: its rows, all counted; its bytes, from a sample; or the time that
statements for it took lately."""

_MEASURES = ("rows", "bytes", "load")
_PARTS = 1_000_000


@dataclass(frozen=True, slots=True)
class HotKey:
    """A key that is asked for often.

    Attributes:
        key: Which.
        bucket: Where its rows lie.
        shard: Who owns that.
        hits_min: It had at least so many hits.
        hits_max: And at most so many.
        share: Its hits as a share of all, at least: `hits_min` of those of all keys.
        bucket_share: The same, of the hits of its bucket. Near 1, the bucket is busy with this key,
            and moving the bucket is as good as moving the key.
        busy_seconds: How long its statements took, as far as they were counted.
    """

    key: Key
    bucket: int
    shard: str
    hits_min: int
    hits_max: int
    share: float
    bucket_share: float
    busy_seconds: float


@dataclass(frozen=True, slots=True)
class Sight:
    """The way to all that can be seen.

    Attributes:
        access: The way to the shards.
        control: The control database, which has the load.
        within: How far back the load is looked at.
    """

    access: ShardAccess
    control: Engine
    within: timedelta

    def stats(self, groups: Sequence[EntityGroup]) -> list[ShardStats]:
        """Return what each shard holds and is asked."""
        access = self.access
        tables = access.placements.tables()
        maps = {group.name: access.router.map_of(group) for group in groups}
        counts = on_each(
            access, lambda shard, conn: count_shard(conn, shard, tables, maps, schema=access.schema)
        )
        loads = {name: self.load(shard_map) for name, shard_map in maps.items()}
        return [
            replace(
                counted,
                buckets=tuple(
                    _with_load(bucket, loads[bucket.group].get(bucket.bucket))
                    for bucket in counted.buckets
                ),
            )
            for counted in counts.values()
        ]

    def load(self, shard_map: ShardMap) -> dict[int, BucketCount]:
        """Return what each bucket of a group was asked lately."""
        with tables_needed(self.access.schema), self._control() as conn, reading(conn):
            return load_by_bucket(
                conn, shard_map.group_id, within=self.within, schema=self.access.schema
            )

    def hot_keys(self, group: EntityGroup, *, limit: int) -> list[HotKey]:
        """Return the keys of a group that are asked for most, the hottest first."""
        shard_map = self.access.router.map_of(group)
        buckets = self.load(shard_map)
        with tables_needed(self.access.schema), self._control() as conn, reading(conn):
            keys, total = load_by_key(
                conn,
                shard_map.group_id,
                within=self.within,
                limit=limit,
                schema=self.access.schema,
            )
        found = []
        for counted in keys:
            key = group.parsed_key(counted.key)
            bucket = shard_map.strategy.bucket(key)
            in_bucket = buckets.get(bucket, BucketCount()).hits
            found.append(
                HotKey(
                    key,
                    bucket,
                    shard_map.owners[bucket],
                    counted.hits_min,
                    counted.hits_max,
                    counted.hits_min / max(1, total),
                    min(1.0, counted.hits_min / max(1, in_bucket)),
                    counted.busy_us / 1e6,
                )
            )
        return found

    def stored_shards(self) -> tuple[dict[str, float], frozenset[str], frozenset[str]]:
        """Return the weights of shards, those that are to be emptied, and those left alone."""
        shard = sharding_tables(self.access.schema).shard
        with tables_needed(self.access.schema), self._control() as conn, reading(conn):
            rows = conn.execute(select(shard.c.shard_id, shard.c.weight, shard.c.state)).all()
        leaving = frozenset(row.shard_id for row in rows if row.state == "draining")
        kept = frozenset(row.shard_id for row in rows if row.state == "readonly")
        return {row.shard_id: row.weight for row in rows}, leaving, kept

    def costs(
        self, group: EntityGroup, shard_map: ShardMap, by: Measure | Mapping[Measure, float]
    ) -> tuple[str, dict[int, float]]:
        """Return what buckets are weighed by, in words, and what each weighs.

        Raises:
            SettingsError: There is no such measure, or no load was counted.
        """
        if isinstance(by, str):
            _check_measures({by: 1.0})
            return by, self._measured(group, shard_map, by)
        _check_measures(by)
        mixed: dict[int, float] = {}
        for measure, part in by.items():
            costs = self._measured(group, shard_map, measure)
            total = sum(costs.values())
            for bucket, cost in costs.items():
                share = _PARTS * part * cost / total if total else 0.0
                mixed[bucket] = mixed.get(bucket, 0.0) + share / sum(by.values())
        mixed = {bucket: float(round(cost)) for bucket, cost in mixed.items()}
        words = " + ".join(f"{part:g} {measure}" for measure, part in by.items())
        return f"millionths of {words}", mixed

    def _measured(self, group: EntityGroup, shard_map: ShardMap, by: Measure) -> dict[int, float]:
        access = self.access
        if by == "load":
            counted = self.load(shard_map)
            if not counted:
                raise SettingsError(
                    "by", "nothing was counted lately; open the cluster with watch_load=True"
                )
            return {bucket: float(count.busy_us) for bucket, count in counted.items()}
        tables = access.placements.tables()

        def measure(_shard: str, conn: Connection) -> Mapping[int, float]:
            count = rows_by_bucket if by == "rows" else bytes_by_bucket
            return count(conn, tables, group, shard_map.strategy, schema=access.schema)

        found = on_each(access, measure)
        placed = ((bucket, shard_map.owners[bucket]) for bucket in shard_map.buckets)
        # Whole numbers add up exactly: a drained shard ends with 0.
        return {bucket: float(round(found[shard].get(bucket, 0))) for bucket, shard in placed}

    def _control(self) -> Connection:
        return self.control.connect()


def plan_for(  # noqa: PLR0913 -- what a plan depends on
    sight: Sight,
    group: EntityGroup,
    *,
    by: Measure | Mapping[Measure, float],
    draining: Collection[str],
    weights: Mapping[str, float],
    threshold: float,
    max_moves: int | None,
) -> RebalancePlan:
    """Return which buckets should move.

    Raises:
        SettingsError: A shard that is named is none of the cluster, or none is left; or nothing is
            known to weigh buckets by.
    """
    access = sight.access
    if unknown := {*draining, *weights} - access.engines.keys():
        raise SettingsError("plan", f"{sorted(unknown)} are no shards of this cluster")
    shard_map = access.router.map_of(group)
    words, costs = sight.costs(group, shard_map, by)
    placement = {bucket: shard_map.owners[bucket] for bucket in shard_map.buckets}
    stored, leaving, kept = sight.stored_shards()
    all_weights = {shard: stored.get(shard, 1.0) for shard in access.engines} | {**weights}
    draining = {*draining, *leaving} & all_weights.keys()
    moves = plan_moves(
        placement,
        costs,
        all_weights,
        draining=draining,
        left_alone=(kept & all_weights.keys()) - draining,
        threshold=threshold,
        max_moves=max_moves,
    )
    held = dict.fromkeys(all_weights, 0.0)
    for bucket, shard in placement.items():
        held[shard] += costs.get(bucket, 0.0)
    return RebalancePlan(
        group=group.name,
        by=words,
        epoch=shard_map.epoch,
        weights=all_weights,
        held=held,
        draining=tuple(sorted(draining)),
        moves=tuple(moves),
    )


def _with_load(bucket: BucketStats, load: BucketCount | None) -> BucketStats:
    if load is None:
        return bucket
    return replace(
        bucket, reads=load.reads, writes=load.writes, busy_seconds=load.busy_us / 1_000_000
    )


def _check_measures(by: Mapping[Measure, float]) -> None:
    if unknown := by.keys() - {*_MEASURES}:
        raise SettingsError("by", f"{sorted(unknown)} weigh nothing; take {', '.join(_MEASURES)}")
    if not by or not all(part > 0 for part in by.values()):
        raise SettingsError("by", "give each part of the mix a positive number")
