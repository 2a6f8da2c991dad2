"""Claim keys for rows that are about to be committed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from datapatterns.errors import IndexBusyError, IndexKeyTakenError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.over_shards.entries import (
    Claimed,
    Entries,
    Wanted,
    remove_everywhere,
)
from datapatterns.index_table.over_shards.net_changes import Entry, Included, Texts
from datapatterns.index_table.over_shards.owners import Held, has_key

_ROUNDS_MAX = 20
"""How often keys are tried that others take and give up meanwhile."""


@dataclass(slots=True)
class Claiming:
    """Claims keys of one index for one transaction.

    Attributes:
        entries: The index.
        held: Locks that the transaction holds, by shard and name.
        lock_seconds: How long to wait for whoever else wants a key.
        kept: Entries that were these rows' before; their included columns are as they were.
    """

    entries: Entries
    held: Held
    lock_seconds: float
    kept: set[Entry] = field(default_factory=set)
    _made: list[Claimed] = field(default_factory=list)

    def claim(self, added: Mapping[Entry, Included]) -> None:
        """Make an entry for each of ``added``, or find that it is there already.

        Raises:
            IndexBusyError: Others do not let go of a key, or take it again and again.
            IndexKeyTakenError: Another row has a key. What was claimed so far is claimed still.
        """
        wanted = {entry: Wanted(entry, uuid4(), added[entry]) for entry in sorted(added)}
        for _ in range(_ROUNDS_MAX):
            if not wanted:
                return
            by_key: dict[Texts, list[Entry]] = {}
            for entry in wanted:
                by_key.setdefault(entry.key, []).append(entry)
            for shard, keys in self.entries.by_shard(by_key).items():
                mine = [wanted[entry] for key in keys for entry in by_key[key]]
                for entry in self._claim_on(shard, keys, mine):
                    del wanted[entry]
        if wanted:
            raise IndexBusyError(self.entries.index.name)

    def give_up(self) -> None:
        """Remove what was made; what was this row's before may belong to its committed version."""
        remove_everywhere(self.entries.access, self.entries.index, self._made)
        self._made.clear()

    def _claim_on(self, shard: str, keys: list[Texts], wanted: list[Wanted]) -> list[Entry]:
        claims = {each.entry: each.claim for each in wanted}
        with self.entries.alone(shard) as conn:
            inserted = self.entries.inserted(conn, wanted, alone=True)
        # Should the answer be lost, they may be there, and lead nowhere: nobody can tell whether
        # they were this row's before.
        self._made += [
            Claimed(entry, claims[entry]) for entry, is_new in inserted.items() if is_new
        ]
        failpoint("index.some-claimed")
        self.kept |= {entry for entry, is_new in inserted.items() if not is_new}
        done = list(inserted)
        missing = [each for each in wanted if each.entry not in inserted]
        if missing:
            with self.entries.alone(shard) as conn:
                found = self.entries.found(conn, keys, alone=True)
            standing = {each.entry.key: each for each in found}
            done += self._taken_over(shard, missing, standing)
        return done

    def _taken_over(
        self, shard: str, missing: Iterable[Wanted], standing: Mapping[Texts, Claimed]
    ) -> list[Entry]:
        done = []
        for each in missing:
            seen = standing.get(each.entry.key)
            if seen is None:
                continue  # given up meanwhile: the next round inserts it
            is_own = seen.entry == each.entry
            if not is_own and self._is_alive(seen):
                raise IndexKeyTakenError(self.entries.index.name)
            with self.entries.writing(shard, [each.entry.key]) as conn:
                # Its included columns may be those of its committed version.
                is_mine = self.entries.replaced(conn, seen, each, carry=not is_own)
            if is_mine:
                done.append(each.entry)
            if is_mine and is_own:
                self.kept.add(each.entry)
            elif is_mine:
                self._made.append(Claimed(each.entry, each.claim))
        return done

    def _is_alive(self, seen: Claimed) -> bool:
        return has_key(
            self.entries.access,
            self.entries.index,
            seen.entry,
            held=self.held,
            lock_seconds=self.lock_seconds,
        )
