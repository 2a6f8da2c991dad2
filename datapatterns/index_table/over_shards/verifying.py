"""Compare an index over shards with its table, both ways; mend it; sweep what leads nowhere."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Final
from uuid import uuid4

from sqlalchemy import Connection, text

from datapatterns.clock import SYSTEM_CLOCK
from datapatterns.errors import IndexBusyError
from datapatterns.failpoints import failpoint
from datapatterns.index_table.entries import IndexDifference
from datapatterns.index_table.over_shards.backfilling import CONFLICTS_MAX
from datapatterns.index_table.over_shards.digests import (
    PARTS,
    base_digest,
    differing,
    index_digest,
    shard_key_of,
)
from datapatterns.index_table.over_shards.entries import Entries, Wanted, remove_everywhere
from datapatterns.index_table.over_shards.net_changes import Entry, Texts
from datapatterns.index_table.over_shards.refreshing import refresh
from datapatterns.index_table.over_shards.reports import ShardIndexReport, SweptEntries
from datapatterns.index_table.over_shards.settling import Conflict, settle
from datapatterns.index_table.over_shards.stages import on_each
from datapatterns.index_table.over_shards.walking import Difference, Kind, Walk, retried
from datapatterns.index_table.verifying import SAMPLES_MAX

_ROUNDS_MAX: Final = 5
"""How often what differs by its sums alone is read again."""

_KEPT_MAX: Final = 1_000
"""How many entries that carry other values are kept in mind, to be looked at once more."""

SETTLE_SECONDS: Final = 0.2
"""How long after a commit its entries may carry what they did before, if nobody has died."""


@dataclass(slots=True)
class Comparison:
    """A comparison of an index with its table, which mends what it finds if that is wanted.

    Attributes:
        entries: The index.
        lock_seconds: How long to wait for whoever holds a key.
        mend: Whether to mend.
        conflicts: Rows that can have no entry, as another row has their key.
    """

    entries: Entries
    lock_seconds: float
    mend: bool = False
    conflicts: list[Conflict] = field(default_factory=list)
    _left: Counter[Kind] = field(default_factory=Counter)
    _samples: list[Difference] = field(default_factory=list)
    _different: list[Entry] = field(default_factory=list)
    _undecided: int = 0
    _mended: int = 0

    def run(self) -> ShardIndexReport:
        """Compare, and mend.

        Raises:
            ShardUnavailableError: A shard does not answer.
            StaleShardMapError: Buckets are handed over all the time.
        """
        rows, dirty = self._dirty_parts()
        for _ in range(_ROUNDS_MAX):
            self._forget()
            if not dirty:
                break
            was, mended = self._maps(), self._mended
            self._walk(dirty)
            failpoint("index.walked")
            # A bucket may have carried rows past the walk; the sums know. And they tell whether
            # what was mended is right.
            if was == self._maps() and mended == self._mended:
                break
            rows, still = self._dirty_parts()
            dirty &= still  # in flight is other work each time
        self._look_again()
        return self._report(rows)

    def _dirty_parts(self) -> tuple[int, frozenset[int]]:
        access, index = self.entries.access, self.entries.index
        of_base = base_digest(access, index)
        failpoint("index.digested")
        of_index = index_digest(access, index)
        return sum(count for count, _ in of_base.values()), differing(of_base, of_index)

    def _maps(self) -> list[object]:
        access, index = self.entries.access, self.entries.index
        groups = shard_key_of(access, index).group, index.group
        access.router.refresh()
        maps = [access.router.map_of(group) for group in groups]
        return [(each.epoch, each.moving) for each in maps]

    def _forget(self) -> None:
        self._left.clear()
        self._undecided = 0
        for kept in (self._samples, self._different, self.conflicts):
            kept.clear()

    def _walk(self, dirty: frozenset[int]) -> None:
        parts = dirty if len(dirty) < PARTS // 2 else None
        walk = Walk(self.entries, self.lock_seconds, parts)
        for found in walk.over_rows():
            self._claim([each for each in found if each.kind == "missing"])
            self._refresh([each for each in found if each.kind == "different"])
        for found in walk.over_entries():
            self._remove(found)
        self._undecided += walk.undecided

    def _claim(self, missing: Sequence[Difference]) -> None:
        if not self.mend:
            self._leave(missing)
            return
        made = retried(lambda: claim_at_once(self.entries, missing))
        self._mended += len(made)
        for each in missing:
            if each.entry in made:
                continue
            try:
                conflict = settle(
                    self.entries, each.entry, each.included, lock_seconds=self.lock_seconds
                )
            except IndexBusyError:
                self._undecided += 1
                continue
            if conflict is None:
                self._mended += 1
                continue
            self._leave([each])
            if len(self.conflicts) < CONFLICTS_MAX:
                self.conflicts.append(conflict)

    def _refresh(self, different: Sequence[Difference]) -> None:
        if self.mend and different:
            refresh_now(self.entries, [each.entry for each in different])
            self._mended += len(different)
        elif len(self._different) < _KEPT_MAX:
            self._different += [each.entry for each in different]
        else:
            self._leave(different)

    def _remove(self, orphaned: Sequence[Difference]) -> None:
        if self.mend:
            self._mended += remove_orphans(self.entries, orphaned)
        else:
            self._leave(orphaned)

    def _look_again(self) -> None:
        """Tell what was in flight between a commit and its entries from what stays wrong."""
        if not self._different:
            return
        Event().wait(SETTLE_SECONDS)
        walk = Walk(self.entries, self.lock_seconds)
        self._leave(walk.still_wrong(self._different))
        self._undecided += walk.undecided

    def _leave(self, found: Sequence[Difference]) -> None:
        self._left.update(each.kind for each in found)
        self._samples += found[: SAMPLES_MAX - len(self._samples)]

    def _report(self, rows: int) -> ShardIndexReport:
        index = self.entries.index
        samples = map(_shown, self._samples)
        return ShardIndexReport(
            index.name,
            rows,
            missing=self._left["missing"],
            different=self._left["different"],
            orphaned=self._left["orphaned"],
            undecided=self._undecided,
            mended=self._mended,
            samples=tuple(samples),
        )


def sweep(
    entries: Entries,
    *,
    lock_seconds: float,
    older_than_seconds: float | None,
    limit: int | None,
    dry_run: bool,
) -> SweptEntries:
    """Remove entries that lead to no row.

    Each is looked at under its key's lock, and removed if it is still the claim that was seen: so
    its age is a matter of cost alone. Of a claim whose transaction is under way that end would be
    waited for.

    Args:
        entries: The index.
        lock_seconds: How long to wait for whoever holds a key.
        older_than_seconds: Leave out what was claimed later; unless given, what was claimed since
            the oldest transaction began that runs on any shard.
        limit: At most about how many.
        dry_run: Only count them.

    Raises:
        ShardUnavailableError: A shard does not answer.
    """
    began = SYSTEM_CLOCK.monotonic()
    if older_than_seconds is None:
        ages = on_each(entries.access, _oldest_transaction_seconds)
        older_than_seconds = max(ages.values())
    walk = Walk(entries, lock_seconds)
    orphaned = removed = 0
    # By the time that a page is read, claims of transactions that run have grown older, too.
    pages = walk.over_entries(
        older_than=lambda: older_than_seconds + SYSTEM_CLOCK.monotonic() - began
    )
    for found in pages:
        orphaned += len(found)
        failpoint("index.orphans-seen")
        if not dry_run:
            removed += remove_orphans(entries, found)
        if limit is not None and orphaned >= limit:
            break
    return SweptEntries(entries.index.name, orphaned, removed, walk.undecided)


def claim_at_once(entries: Entries, missing: Iterable[Difference]) -> set[Entry]:
    """Make entries whose keys nobody has, in one statement for each shard; return which."""
    wanted: dict[Texts, list[Wanted]] = {}
    for each in missing:
        made = Wanted(each.entry, uuid4(), each.included)
        wanted.setdefault(each.entry.key, []).append(made)
    found: set[Entry] = set()
    for shard, keys in entries.by_shard(wanted).items():
        with entries.writing(shard, keys) as conn:
            found |= {*entries.inserted(conn, [each for key in keys for each in wanted[key]])}
    return found


def remove_orphans(entries: Entries, orphaned: Sequence[Difference]) -> int:
    """Delete entries that are still as they were seen; return how many were."""
    seen = [each.seen for each in orphaned if each.seen is not None]
    return retried(lambda: remove_everywhere(entries.access, entries.index, seen))


def refresh_now(entries: Entries, wanted: Sequence[Entry]) -> None:
    """Bring included columns to what rows say."""
    retried(lambda: refresh(entries.access, entries.index, wanted))


def _shown(difference: Difference) -> IndexDifference:
    return IndexDifference(difference.kind, difference.entry.key, difference.entry.row)


def _oldest_transaction_seconds(conn: Connection) -> float:
    return float(conn.scalar(_OLDEST) or 0.0)


# Transactions of others may be shown without their beginning, to who has few rights; then what is
# younger than they are is waited for.
_OLDEST = text("""
    SELECT coalesce(extract(epoch FROM clock_timestamp() - least(
        (SELECT min(xact_start) FROM pg_catalog.pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()),
        (SELECT min(prepared) FROM pg_catalog.pg_prepared_xacts
         WHERE database = current_database())
    )), 0)
""")
