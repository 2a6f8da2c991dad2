"""The index tables over the shards of a cluster, as an application declares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from datapatterns.errors import IndexDefinitionError, IndexUndeclaredError
from datapatterns.index_table.index import IndexTable
from datapatterns.index_table.over_shards.notes import noted_changes
from datapatterns.index_table.over_shards.reserving import Reserving
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, sharded_index
from datapatterns.sharding import EntityGroup, ShardCluster
from datapatterns.sharding.access import ShardAccess
from datapatterns.transactions import A_TRANSACTION, fresh_reads, refuse_aborted, resuming

LOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ShardIndexes:
    """Index tables over shards; give them to a `ShardCluster` as its ``indexes``.

    Sessions of that cluster keep them, and so does what is written in `ShardCluster.atomically`.
    Whoever else writes rows that they find is refused when they commit.

    Attributes:
        declared: The index tables, of mode ``reserve``.
        lock_seconds: How long a transaction waits for others that want the same keys.

    Raises:
        IndexDefinitionError: One of them is kept in each database.
        IndexUndeclaredError: Two have one name.
    """

    declared: Sequence[IndexTable]
    lock_seconds: float = LOCK_SECONDS
    _by_name: dict[str, ShardedIndex] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for index in self.declared:
            if index.definition.mode != "reserve":
                raise IndexDefinitionError(
                    index.name,
                    "it is kept beside its rows, on each shard; let its mode be 'reserve'",
                )
            found = sharded_index(index.definition)
            if self._by_name.setdefault(index.name, found) is not found:
                raise IndexUndeclaredError(index.name, "two are declared; give one another name")

    @property
    def groups(self) -> Sequence[EntityGroup]:
        """The groups that the index tables are sharded by."""
        return [index.group for index in self._by_name.values()]

    @property
    def indexes(self) -> Mapping[str, ShardedIndex]:
        """Return the index tables by their names."""
        return self._by_name

    def create(self, cluster: ShardCluster) -> None:
        """Have writers of all shards keep the index tables; repeating it does nothing.

        Their tables must be there, as those of the application's classes: they are in the same
        `MetaData`. Each shard is a transaction of its own.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
            IndexDefinitionError: A table, a column or an expression can't be indexed.
        """
        for engine in cluster.engines.values():
            with fresh_reads(engine) as conn, resuming(conn, "creating index tables"):
                for index in self.declared:
                    index.create(conn)

    def before_commit(
        self, access: ShardAccess, parts: Mapping[str, Connection]
    ) -> Reserving | None:
        """Claim the keys of what a transaction has written; `ShardCluster` calls it.

        Raises:
            IndexBusyError: Others did not let go of a key in time; repeat the transaction.
            IndexKeyTakenError: Another row has a key.
            IndexKeyTransferError: One row gives up a key that another takes.
        """
        changes = {}
        for shard, conn in parts.items():
            refuse_aborted(conn, A_TRANSACTION)
            with access.asking(shard):
                changed = noted_changes(conn, self._by_name, schema=access.schema)
            if changed:
                changes[shard] = changed
        if not changes:
            return None
        names = {name for by_index in changes.values() for name in by_index}
        indexes = {name: self._by_name[name] for name in sorted(names)}
        reserving = Reserving(access, indexes, self.lock_seconds, changes)
        reserving.reserve(parts)
        return reserving
