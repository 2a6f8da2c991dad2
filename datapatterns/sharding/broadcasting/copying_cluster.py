"""The part of a cluster that looks after broadcast tables."""

from abc import abstractmethod

from sqlalchemy import Table

from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.broadcasting.comparing import CopyComparison
from datapatterns.sharding.broadcasting.repairing import repair_copies, verify_copies
from datapatterns.sharding.rekeying.rekeying_cluster import RekeyingCluster


class CopyingCluster(RekeyingCluster):
    """What a `ShardCluster` does for the tables that every shard holds a copy of."""

    @property
    @abstractmethod
    def _access(self) -> ShardAccess: ...

    @property
    def broadcast_tables(self) -> list[Table]:
        """Return the broadcast tables beside the sharded ones, those first that others refer to."""
        return self._access.placements.broadcast_tables()

    def verify_broadcast(self, table: type | Table, *, source: str | None = None) -> CopyComparison:
        """Return how the copies of a broadcast table differ from that of one shard.

        Its writers wait meanwhile. The price: it reads the table whole on every shard.

        Args:
            table: A mapped class, or a table.
            source: The shard to compare with; the first one unless it is said.

        Raises:
            CopiesDifferError: The shards' tables have other columns.
            ShardUnavailableError: A shard does not answer.
        """
        return verify_copies(self._access, table, source=source)

    def repair_broadcast(
        self, table: type | Table, *, source: str, dry_run: bool = False
    ) -> CopyComparison:
        """Make all copies of a broadcast table equal to that of one shard; return what differed.

        On all shards or on none. Its writers wait meanwhile.

        Args:
            table: A mapped class, or a table.
            source: The shard whose copy is right.
            dry_run: Only say what differs.

        Raises:
            CopiesDifferError: Tables have other columns, or a row cannot be made equal.
            ShardUnavailableError: A shard does not answer; nothing was changed.
        """
        return repair_copies(self._access, table, source=source, dry_run=dry_run)
