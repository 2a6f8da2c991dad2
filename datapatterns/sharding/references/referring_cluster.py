"""The part of a cluster that looks after references between shards."""

from abc import abstractmethod

from datapatterns.errors import SettingsError
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.references.auditing import Auditing, ReferenceAudit, Told
from datapatterns.sharding.references.definition import ShardForeignKey


def _untold(_: ReferenceAudit) -> None:
    pass


class ReferringCluster:
    """What a `ShardCluster` does about rows that refer to rows of other shards."""

    @property
    @abstractmethod
    def _access(self) -> ShardAccess: ...

    @property
    def references(self) -> tuple[ShardForeignKey, ...]:
        """Return the references that were declared."""
        return tuple(each.declared for each in self._access.references.all)

    def audit_references(
        self,
        *names: str,
        limit: int = 1_000,
        rows_at_once: int = 1_000,
        progress: Told = _untold,
    ) -> list[ReferenceAudit]:
        """Return which rows refer to what is not there, on all shards.

        While rows are written and buckets move. What seems to be broken is looked at again with
        the row and its parent locked, when all that has happened on their shards can be seen.
        The price: it reads the child's table whole, and its parents by their keys.

        Args:
            names: The references to look at; all of them unless some are named.
            limit: At how many broken rows to stop, for each reference.
            rows_at_once: How many rows to hold in memory.
            progress: Is told what was found so far, after each of these.

        Raises:
            BranchesUnsettledError: Nobody can tell what has happened on a shard.
            SettingsError: There is no such reference, or nothing can be held.
            ShardUnavailableError: A shard does not answer.
            StaleShardMapError: A bucket has been nobody's for half a minute; finish its move.
        """
        known = {each.name: each for each in self._access.references.all}
        for name in names:
            if name not in known:
                raise SettingsError(
                    "names", f"there is no reference {name!r}; there are {', '.join(known)}"
                )
        if min(limit, rows_at_once) < 1:
            raise SettingsError("limit", "limit and rows_at_once are at least 1")
        auditing = Auditing(self._access, limit, rows_at_once, progress)
        return [auditing.audit(known[name]) for name in names or known]
