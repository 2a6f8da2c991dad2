"""Lock, remember, claim, commit, forget: what makes a commit on one shard keep an index on another.

Each committed row has its entry, whoever dies and whenever: keys are claimed before the commit, and
forgotten after it. What is left behind leads nowhere, is seen to do so by every read, and is taken
over by whoever wants the key, or swept.

Source: the consistent lookup vindexes of Vitess (RFC 4855) commit before, with and after a
transaction in the same way; they rely on InnoDB waiting for uncommitted rows, which PostgreSQL does
not. Here an advisory lock on the shard of the row is what is waited for.

A key that one row gives up and another takes can be neither claimed before the commit nor forgotten
after it: its entry changes in the transaction itself.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from datapatterns.errors import DataPatternsError, IndexKeyTakenError, IndexKeyTransferError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.over_shards.claiming import Claiming
from datapatterns.index_table.over_shards.entries import Claimed, Entries, remove_everywhere
from datapatterns.index_table.over_shards.handing_over import Handed, hand_over
from datapatterns.index_table.over_shards.net_changes import (
    Entry,
    Included,
    NetChanges,
    Texts,
    doubled,
    handed_over,
)
from datapatterns.index_table.over_shards.notes import (
    forget_notes,
)
from datapatterns.index_table.over_shards.owners import Held
from datapatterns.index_table.over_shards.refreshing import refresh
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.companions import Reaching

ShardChanges = Mapping[str, Mapping[str, NetChanges]]
"""What a transaction changes, by shard and index."""


@dataclass(slots=True)
class Reserving:
    """The part that indexes have in one COMMIT.

    Attributes:
        access: The way to the shards.
        indexes: By name.
        lock_seconds: How long to wait for others that want the same keys.
        changes: What the transaction changes, by shard and index.
        held: The locks of all keys of that, which the transaction holds on the shards of the rows:
            whoever else changes who has them there waits until it has ended.
        reach: The way to write to further shards in the transaction, if it may.
    """

    access: ShardAccess
    indexes: Mapping[str, ShardedIndex]
    lock_seconds: float
    changes: ShardChanges
    held: Held
    reach: Reaching | None = None
    _handed: dict[str, frozenset[Texts]] = field(default_factory=dict)
    _remembered: dict[str, list[Claimed]] = field(default_factory=dict)
    _claimings: dict[str, Claiming] = field(default_factory=dict)

    def reserve(self, parts: Mapping[str, Connection]) -> None:
        """Claim all keys; whatever goes wrong, nothing is left of that.

        Raises:
            IndexBusyError: Others did not let go of a key in time.
            IndexKeyTakenError: Another row has a key.
            IndexKeyTransferError: One row gives up a key that another takes, and the transaction
                can't write to several shards.
            ShardUnavailableError: A shard does not answer.
            StaleShardMapError: Entries have moved.
        """
        self._check()
        failpoint("index.keys-locked")
        try:
            for name in sorted(self.indexes):
                index = self.indexes[name]
                handed, added = self._handed.get(name, frozenset()), self._added(name)
                self._remember(index, self._but(handed, self._removed(name)))
                claiming = Claiming(self._entries(index), self.held, self.lock_seconds)
                self._claimings[name] = claiming
                claiming.claim({entry: added[entry] for entry in self._but(handed, added)})
            failpoint("index.keys-claimed")
            # Last, so that the locks of those entries are held for no longer than they must be.
            self._hand_over()
            for shard in self.changes:
                with self.access.asking(shard):
                    forget_notes(parts[shard], schema=self.access.schema)
        except Exception as error:
            try:
                self.rolled_back()
            except (DataPatternsError, SQLAlchemyError) as left:
                # Why the transaction is refused is what its caller has to know.
                error.add_note(f"what was claimed is left to a sweep: {left}")
            raise

    def committed(self) -> None:
        """Forget the keys that rows gave up, and read included columns again."""
        failpoint("index.base-committed")
        todo: list[Callable[[], object]] = [
            partial(remove_everywhere, self.access, self.indexes[name], seen)
            for name, seen in self._remembered.items()
        ]
        todo += [
            partial(refresh, self.access, index, refreshed)
            for name, index in self.indexes.items()
            if (refreshed := self._refreshed(name))
        ]
        failed: list[Exception] = []
        for each in todo:  # a shard that is away keeps nothing of the others back
            try:
                each()
            except (DataPatternsError, SQLAlchemyError) as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def rolled_back(self) -> None:
        """Forget what was claimed.

        Entries that were this row's before may belong to what it has committed, and stay.
        """
        for claiming in self._claimings.values():
            claiming.give_up()

    def _check(self) -> None:
        for name, index in self.indexes.items():
            added, removed = self._added(name), self._removed(name)
            if not index.definition.unique:
                continue
            if doubled(added) is not None:
                raise IndexKeyTakenError(name)
            if handed := handed_over(added, removed):
                if self.reach is None:
                    raise IndexKeyTransferError(name)
                self._handed[name] = handed

    def _hand_over(self) -> None:
        if self.reach is None or not self._handed:
            return
        handed = []
        for name, keys in sorted(self._handed.items()):
            come = {e: included for e, included in self._added(name).items() if e.key in keys}
            gone = {entry for entry in self._removed(name) if entry.key in keys}
            handed.append(Handed(self._entries(self.indexes[name]), gone, come))
        hand_over(handed, self.held, self.reach)
        failpoint("index.keys-handed-over")

    def _entries(self, index: ShardedIndex) -> Entries:
        return Entries(self.access, index, self.lock_seconds)

    def _but(self, keys: frozenset[Texts], entries: Iterable[Entry]) -> set[Entry]:
        return {entry for entry in entries if entry.key not in keys}

    def _remember(self, index: ShardedIndex, removed: Iterable[Entry]) -> None:
        """Note which claims are to be forgotten: the same row may have claimed again by then."""
        wanted = {*removed}
        entries = self._entries(index)
        for shard, keys in entries.by_shard(entry.key for entry in wanted).items():
            with entries.alone(shard) as conn:
                found = entries.found(conn, keys, alone=True)
            seen = [each for each in found if each.entry in wanted]
            self._remembered.setdefault(index.name, []).extend(seen)

    def _added(self, name: str) -> dict[Entry, Included]:
        return {
            entry: included
            for by_index in self.changes.values()
            if name in by_index
            for entry, included in by_index[name].added.items()
        }

    def _refreshed(self, name: str) -> set[Entry]:
        kept: set[Entry] = set()
        if self.indexes[name].definition.include:
            # Whoever has changed a row since its key was handed over may not have seen its entry.
            handed = self._handed.get(name, frozenset())
            kept = {entry for entry in self._added(name) if entry.key in handed}
            kept |= self._claimings[name].kept
        changed = [by_index[name] for by_index in self.changes.values() if name in by_index]
        return {entry for changes in changed for entry in changes.refreshed} | kept

    def _removed(self, name: str) -> set[Entry]:
        return {
            entry
            for by_index in self.changes.values()
            if name in by_index
            for entry in by_index[name].removed
        }
