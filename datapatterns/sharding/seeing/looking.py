"""Ask every shard what it holds."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from sqlalchemy import Connection

from datapatterns.errors import SettingsError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.scatter.scattering import ask_each
from datapatterns.sharding.seeing.counting import ShardStats, count_rows, rows_by_bucket
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan
from datapatterns.sharding.seeing.rebalancing import plan_moves

T = TypeVar("T")


def stats_of(access: ShardAccess, groups: Sequence[EntityGroup]) -> list[ShardStats]:
    """Return how many rows of each mapped table lie on each shard."""
    tables = access.placements.tables()
    maps = {group.name: access.router.map_of(group) for group in groups}
    counts = _on_each(access, lambda conn: count_rows(conn, tables, maps, schema=access.schema))
    return [ShardStats(shard, counted) for shard, counted in counts.items()]


def plan_for(
    access: ShardAccess,
    group: EntityGroup,
    *,
    draining: Collection[str],
    weights: Mapping[str, float],
    threshold: float,
    max_moves: int | None,
) -> RebalancePlan:
    """Return which buckets should move; each costs as many rows as it has.

    Raises:
        SettingsError: A shard that is named is none of the cluster, or none is left.
    """
    if unknown := {*draining, *weights} - access.engines.keys():
        raise SettingsError("plan", f"{sorted(unknown)} are no shards of this cluster")
    tables = access.placements.tables()
    shard_map = access.router.map_of(group)

    def count(conn: Connection) -> Counter[int]:
        return rows_by_bucket(conn, tables, group, shard_map.strategy, schema=access.schema)

    counts = _on_each(access, count)
    placement = {bucket: shard_map.owners[bucket] for bucket in shard_map.buckets}
    costs = {bucket: float(counts[shard][bucket]) for bucket, shard in placement.items()}
    all_weights = dict.fromkeys(access.engines, 1.0) | {**weights}
    moves = plan_moves(
        placement,
        costs,
        all_weights,
        draining=draining,
        threshold=threshold,
        max_moves=max_moves,
    )
    held = dict.fromkeys(all_weights, 0.0)
    for bucket, shard in placement.items():
        held[shard] += costs[bucket]
    return RebalancePlan(
        group=group.name,
        by="rows",
        epoch=shard_map.epoch,
        weights=all_weights,
        held=held,
        draining=tuple(sorted(draining)),
        moves=tuple(moves),
    )


def _on_each(access: ShardAccess, ask: Callable[[Connection], T]) -> dict[str, T]:
    """Ask all shards at once; return their answers in the order of their names."""

    def question(shard: str) -> Callable[[], T]:
        def answer() -> T:
            with access.engines[shard].connect() as conn:
                return ask(conn)

        return answer

    return ask_each(access.executor, {shard: question(shard) for shard in sorted(access.engines)})
