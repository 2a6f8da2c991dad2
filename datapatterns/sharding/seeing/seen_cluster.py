"""The part of a cluster that looks at what its shards hold."""

from collections.abc import Collection, Mapping

from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.seeing.counting import ShardStats
from datapatterns.sharding.seeing.looking import plan_for, stats_of
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan


class SeenCluster:
    """What a `ShardCluster` can tell about its shards."""

    @property
    def _access(self) -> ShardAccess:
        raise NotImplementedError

    @property
    def groups(self) -> tuple[EntityGroup, ...]:
        """Return the groups whose tables lie on the shards."""
        raise NotImplementedError

    def stats(self) -> list[ShardStats]:
        """Return how many rows of each mapped table lie on each shard. Reads them all.

        Raises:
            ShardUnavailableError: A shard does not answer.
        """
        return stats_of(self._access, self.groups)

    def plan(
        self,
        group: EntityGroup,
        *,
        draining: Collection[str] = (),
        weights: Mapping[str, float] | None = None,
        threshold: float = 0.1,
        max_moves: int | None = None,
    ) -> RebalancePlan:
        """Return which buckets should move so that all shards hold alike; moves nothing.

        A bucket costs as many rows as it has; reads them all.

        Args:
            group: Whose buckets.
            draining: The shards that are to be emptied.
            weights: How large a shard is compared with others; 1 unless it is said.
            threshold: How far from the mean a shard may be, as a share of the mean.
            max_moves: At most so many besides those from draining shards.

        Raises:
            SettingsError: A shard that is named is none of this cluster, or none is left.
            ShardUnavailableError: A shard does not answer.
        """
        return plan_for(
            self._access,
            group,
            draining=draining,
            weights=weights or {},
            threshold=threshold,
            max_moves=max_moves,
        )
