"""The index tables over the shards of a cluster, as an application declares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Delete, Update
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import IndexDefinitionError, IndexUndeclaredError
from datapatterns.index_table.index import IndexTable
from datapatterns.index_table.over_shards.building import BuildPace, build, drop, existing
from datapatterns.index_table.over_shards.entries import LOCK_SECONDS, Entries
from datapatterns.index_table.over_shards.finding import IndexFinding
from datapatterns.index_table.over_shards.matching import matched
from datapatterns.index_table.over_shards.notes import KeyLock, Noted, locked_changes, read_notes
from datapatterns.index_table.over_shards.owners import busy
from datapatterns.index_table.over_shards.reports import (
    ShardIndexConflict,
    ShardIndexReport,
    ShardIndexStatus,
    SweptEntries,
)
from datapatterns.index_table.over_shards.reserving import Reserving
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex, sharded_index
from datapatterns.index_table.over_shards.stages import join
from datapatterns.index_table.over_shards.standing import conflicts_of, status_of
from datapatterns.index_table.over_shards.verifying import Comparison, sweep
from datapatterns.sharding import EntityGroup, ShardCluster
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.companions import Reaching, over_shards
from datapatterns.sharding.finding import OnIndexDown
from datapatterns.transactions import A_TRANSACTION, fresh_reads, refuse_aborted, resuming

BUILD_FAST = BuildPace()
INDEX_ROWS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class ShardIndexes:
    """Index tables over shards; give them to a `ShardCluster` as its ``indexes``.

    Sessions of that cluster keep them, and so does what is written in `ShardCluster.atomically`.
    Whoever else writes rows that they find is refused when they commit.

    Attributes:
        declared: The index tables, of mode ``reserve``.
        lock_seconds: How long a transaction waits for others that want the same keys.
        index_rows_max: Statements that would find more rows through an index, or name more keys,
            are answered as if there were none.
        on_index_down: What reads do if the shard of an index does not answer: ``scatter`` if they
            may ask all shards, or ``raise``. Writes of its keys fail anyhow.

    Raises:
        IndexDefinitionError: One of them is kept in each database.
        IndexUndeclaredError: Two have one name.
    """

    declared: Sequence[IndexTable]
    lock_seconds: float = LOCK_SECONDS
    index_rows_max: int = INDEX_ROWS_MAX
    on_index_down: OnIndexDown = "scatter"
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

    @classmethod
    def of(cls, cluster: ShardCluster) -> "ShardIndexes":
        """Return the index tables that a cluster was given; without any, none are declared."""
        found = (each for each in cluster.companions if isinstance(each, cls))
        return next(found, cls(()))

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

    def find(self, name: str) -> ShardedIndex:
        """Return the index that is declared under ``name``.

        Raises:
            IndexUndeclaredError: None is.
        """
        if (index := self._by_name.get(name)) is None:
            names = ", ".join(sorted(self._by_name)) or "none is"
            raise IndexUndeclaredError(name, f"it is not declared; those that are: {names}")
        return index

    def status(self, cluster: ShardCluster, only: Sequence[str] = ()) -> list[ShardIndexStatus]:
        """Return how each stands, on all shards.

        Raises:
            ShardUnavailableError: A shard does not answer.
        """
        return [status_of(each) for each in self._entries(cluster, only)]

    def build(
        self, cluster: ShardCluster, only: Sequence[str] = (), *, pace: BuildPace = BUILD_FAST
    ) -> dict[str, ShardIndexReport]:
        """Index the rows from before, and let the indexes be read; those that are created already.

        While they are built, look-ups refuse. Takes up where it ended, whoever began; any number of
        processes may do it at once, and share the shards. Writers go on, and buckets may move.

        Args:
            cluster: The shards.
            only: Names, if not all are meant.
            pace: How many rows at once, and how long to pause.

        Returns:
            What the comparison with its table found of each that has become ready.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
            IndexMissingError: It was not created on all shards.
            ShardIndexFailedError: Two rows have one key; see `conflicts`.
            ShardIndexGoneError: It was dropped meanwhile.
            ShardIndexNotReadyError: It is being dropped.
            ShardUnavailableError: A shard does not answer.
        """
        return {
            each.index.name: build(each, pace, lock_seconds=self.lock_seconds)
            for each in self._entries(cluster, only)
            if status_of(each).state != "ready"
        }

    def conflicts(
        self, cluster: ShardCluster, only: Sequence[str] = ()
    ) -> list[ShardIndexConflict]:
        """Return the rows that have kept an index from being built, at most 1,000 of each shard."""
        return [one for each in self._entries(cluster, only) for one in conflicts_of(each)]

    def verify(
        self, cluster: ShardCluster, only: Sequence[str] = ()
    ) -> dict[str, ShardIndexReport]:
        """Compare each with its table, both ways, while all goes on.

        Reads all rows and all entries once, and parts of them once more; what seems to differ is
        looked at again under its key's lock.

        Raises:
            IndexMissingError: It was not created on all shards.
            ShardUnavailableError: A shard does not answer.
        """
        return self._compared(cluster, only, mend=False)

    def repair(
        self, cluster: ShardCluster, only: Sequence[str] = (), *, dry_run: bool = False
    ) -> dict[str, ShardIndexReport]:
        """Do as `verify`, and mend what is found; return what is left.

        What can be left are rows of a unique index whose key another row has.

        Raises: as `verify`.
        """
        return self._compared(cluster, only, mend=not dry_run)

    def sweep(
        self,
        cluster: ShardCluster,
        only: Sequence[str] = (),
        *,
        older_than_seconds: float | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> dict[str, SweptEntries]:
        """Remove entries that lead to no row: what crashes leave behind.

        Args:
            cluster: The shards.
            only: Names, if not all are meant.
            older_than_seconds: Leave out what was claimed later, so as not to wait for it; unless
                given, what was claimed since the oldest transaction began that is under way.
            limit: At most about how many of each.
            dry_run: Only count them.

        Raises:
            ShardUnavailableError: A shard does not answer.
        """
        return {
            each.index.name: sweep(
                each,
                lock_seconds=self.lock_seconds,
                older_than_seconds=older_than_seconds,
                limit=limit,
                dry_run=dry_run,
            )
            for each in self._entries(cluster, only)
            if existing(each)
        }

    def drop(self, cluster: ShardCluster, only: Sequence[str]) -> dict[str, bool]:
        """Have nobody read these indexes, then nobody write them, then forget them.

        Their own tables stay, empty, as they are among those of the application's classes. Repeat
        it after a crash. Returns whether there was one, of each.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
            ShardUnavailableError: A shard does not answer.
        """
        return {each.index.name: drop(each) for each in self._entries(cluster, only) if only}

    def _compared(
        self, cluster: ShardCluster, only: Sequence[str], *, mend: bool
    ) -> dict[str, ShardIndexReport]:
        found = {}
        for each in self._entries(cluster, only):
            existing(each)
            found[each.index.name] = Comparison(each, self.lock_seconds, mend=mend).run()
        return found

    def _entries(self, cluster: ShardCluster, only: Sequence[str]) -> list[Entries]:
        access = over_shards(cluster.session()).shard_access
        names = dict.fromkeys(only or self._by_name)
        return [Entries(access, self.find(name), self.lock_seconds) for name in names]

    def before_commit(
        self,
        access: ShardAccess,
        parts: Mapping[str, Connection],
        reach: Reaching | None = None,
    ) -> Reserving | None:
        """Claim the keys of what a transaction has written; `ShardCluster` calls it.

        Raises:
            IndexBusyError: Others did not let go of a key in time; repeat the transaction.
            IndexKeyTakenError: Another row has a key.
            IndexKeyTransferError: One row gives up a key that another takes, and the transaction
                can't write to several shards.
        """
        noted: dict[str, Noted] = {}
        for shard, conn in parts.items():
            refuse_aborted(conn, A_TRANSACTION)
            with access.asking(shard):
                found = read_notes(conn, self._by_name, schema=access.schema)
            noted |= {} if found is None else {shard: found}
        if not noted:
            return None
        names = sorted({name for each in noted.values() for name in each.statements})
        indexes = {name: self._by_name[name] for name in names}
        changes, held = {}, set[tuple[str, KeyLock]]()
        for shard, each in noted.items():
            with access.asking(shard), busy(", ".join(each.statements)):
                changes[shard] = locked_changes(
                    parts[shard], each, indexes, schema=access.schema, seconds=self.lock_seconds
                )
            held |= {(shard, lock) for lock in each.locks(indexes)}
        locks = frozenset(held)
        reserving = Reserving(access, indexes, self.lock_seconds, changes, locks, reach)
        reserving.reserve(parts)
        return reserving

    def finding(
        self,
        access: ShardAccess,
        statement: SelectBase | Update | Delete,
        parameters: Mapping[str, Any],
        *,
        index: str | None = None,
    ) -> IndexFinding | None:
        """Return what finds the rows of a statement; sessions of `ShardCluster` call it."""
        limit = self.index_rows_max
        declared = self._by_name.values()
        found = matched(statement, parameters, declared, keys_max=limit, chosen=index)
        if found is None:
            return None
        return IndexFinding(access, found, limit, self.on_index_down)

    def join(self, access: ShardAccess, shard: str, others: Sequence[str]) -> None:
        """Have writers of a new shard keep all that are created; `ShardCluster` calls it.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
            IndexDefinitionError: A table there can't be indexed.
            ShardUnavailableError: A shard does not answer.
        """
        for index in self._by_name.values():
            join(access, index, shard, others)
