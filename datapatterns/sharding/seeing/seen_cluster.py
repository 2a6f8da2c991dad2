"""The part of a cluster that looks at what its shards hold and are asked."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.map_change import refuse_composite
from datapatterns.sharding.reaching.watched_cluster import WatchedCluster
from datapatterns.sharding.scatter.explaining import ReadPlan, explain
from datapatterns.sharding.seeing.counting import ShardStats
from datapatterns.sharding.seeing.linting import LintFinding, lint_tables
from datapatterns.sharding.seeing.looking import HotKey, Measure, Sight, plan_for
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan

_HOUR = timedelta(hours=1)
_LOOKED_AT = 1_000
_ALONE = 0.9


class SeenCluster(WatchedCluster):
    """What a `ShardCluster` can tell about its shards."""

    _control: Engine

    @property
    def _access(self) -> ShardAccess:
        raise NotImplementedError

    @property
    def groups(self) -> tuple[EntityGroup, ...]:
        """Return the groups whose tables lie on the shards."""
        raise NotImplementedError

    def lint(self, *, declared_only: bool = False) -> list[LintFinding]:
        """Return what would go wrong with sharded and broadcast tables, and what to do about it.

        Args:
            declared_only: Look at what the code declares, and at no server.

        Raises:
            ShardUnavailableError: A shard does not answer.
        """
        return lint_tables(self._access, self.groups, declared_only=declared_only)

    def stats(self, *, within: timedelta = _HOUR) -> list[ShardStats]:
        """Return what each shard holds of each mapped table and bucket, and what it is asked.

        Counts all rows, so it reads every table whole. What was asked is known of clusters that
        were opened with ``watch_load=True``.

        Args:
            within: How far back to look at what was asked.

        Raises:
            ShardUnavailableError: A shard does not answer.
        """
        return self._sight(within).stats(self.groups)

    def explain(
        self, statement: SelectBase, parameters: Mapping[str, Any] | None = None
    ) -> ReadPlan:
        """Return which shards a read asks, what it sends them, and who merges the answers.

        Asks no shard. Whether the statement may ask all of them is left to its session.

        Args:
            statement: A SELECT.
            parameters: The values that would be passed beside it.

        Raises:
            MergeLimitError: It asks for more rows than may be merged.
            UnmergeableQueryError: The answers of several shards cannot be merged exactly.
            UnroutableStatementError: It cannot be told what it reads.
        """
        return explain(self._access, statement, parameters or {})

    def hot_keys(
        self, group: EntityGroup, *, limit: int = 20, within: timedelta = _HOUR
    ) -> list[HotKey]:
        """Return the keys of a group that are asked for most, the hottest first.

        Each process counts 256 keys at a time, among which is every key that has more than one of
        256 hits. The bounds of a key's hits are certain for what was written down.

        Args:
            group: Whose keys.
            limit: At most so many.
            within: How far back to look.
        """
        return self._sight(within).hot_keys(group, limit=limit)

    def advise_pins(
        self, group: EntityGroup, *, min_share: float = 0.05, within: timedelta = _HOUR
    ) -> list[HotKey]:
        """Return the keys that would better have a bucket of their own, the hottest first.

        Those that certainly get ``min_share`` of all hits and share their bucket with others: such
        a bucket cannot be put anywhere without its hot key, nor that key without the others.

        Args:
            group: Whose keys.
            min_share: The share of all hits from which on a key is worth it.
            within: How far back to look.

        Raises:
            MapChangeRefusedError: The group's keys are two columns, which cannot be pinned.
            ValueError: ``min_share`` is no share.
        """
        refuse_composite(group)
        if not 0 < min_share <= 1:
            raise ValueError(f"{min_share} is no share; give one above 0 and up to 1")
        hot = self._sight(within).hot_keys(group, limit=_LOOKED_AT)
        return [key for key in hot if key.share >= min_share and key.bucket_share < _ALONE]

    def plan(  # noqa: PLR0913 -- what a plan depends on, all by name
        self,
        group: EntityGroup,
        *,
        by: Measure | Mapping[Measure, float] = "rows",
        draining: Collection[str] = (),
        weights: Mapping[str, float] | None = None,
        threshold: float = 0.1,
        max_moves: int | None = None,
        within: timedelta = _HOUR,
    ) -> RebalancePlan:
        """Return which buckets should move so that all shards are used alike; moves nothing.

        Args:
            group: Whose buckets.
            by: What a bucket weighs: its ``"rows"``, which are all read; its ``"bytes"``, from a
                sample; its ``"load"``, the time that its statements took; or a mix of them, such as
                ``{"bytes": 0.5, "load": 0.5}``.
            draining: The shards that are to be emptied, besides those that are being drained.
            weights: How large a shard is compared with others, instead of what is stored.
            threshold: How far from the mean a shard may be, as a share of the mean.
            max_moves: At most so many besides those from draining shards.
            within: How far back to look at the load.

        Raises:
            SettingsError: A shard that is named is none of this cluster, or none is left; or no
                load was counted.
            ShardUnavailableError: A shard does not answer.
        """
        return plan_for(
            self._sight(within),
            group,
            by=by,
            draining=draining,
            weights=weights or {},
            threshold=threshold,
            max_moves=max_moves,
        )

    def _sight(self, within: timedelta) -> Sight:
        access = self._access
        if access.load is not None:  # what this process has counted, too
            access.load.flush()
        return Sight(access, self._control, within)
