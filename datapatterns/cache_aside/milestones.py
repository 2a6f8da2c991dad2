"""Decide whether what was read in an older snapshot may be stored.

A lease proves that nobody has invalidated since it was granted; a snapshot may be older than it.
So each invalidation leaves its transaction's id for a while, and what is stored must come from a
snapshot that shows all of them. Such an id can get lost: evicted, flushed, in a failover. It is
known not to have been by a milestone: a look at what Redis had lost until then, and *after* it a
snapshot of the database. A writer that the reader's snapshot misses, and that is no older than the
milestone, left its id after that look; so it is still there, if nothing was lost since.

No clock of the database or of an application server decides anything here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from datapatterns.cache_aside.steps import Writers
from datapatterns.change_log.snapshots import Snapshot

WRITERS_MS: Final = 60_000
"""How long an invalidation leaves its transaction's id. The same for everybody: whoever kept it
for less would take away what another relies on."""

OLDEST_MS: Final = WRITERS_MS // 2
"""The age of a milestone that is still trusted; half, for what two servers call a second."""

_APART_MS: Final = 2_500


@dataclass(frozen=True, slots=True)
class Milestone:
    """A moment until which it is known what Redis had lost.

    Attributes:
        server_ms: When it was asked, by its own clock.
        losses: What it had lost, as `Survey.losses`.
        snapshot: Of the primary, taken after the answer.
    """

    server_ms: int
    losses: str
    snapshot: Snapshot

    def __str__(self) -> str:
        """Return the milestone as it is kept in Redis."""
        return f"{self.server_ms}|{self.losses}|{self.snapshot}"

    @classmethod
    def parse(cls, line: str) -> "Milestone":
        """Return the milestone that is written so.

        >>> str(Milestone.parse("7|a:b:0|10:20:14"))
        '7|a:b:0|10:20:14'

        Raises:
            ValueError: It is none.
        """
        server_ms, losses, snapshot = line.split("|")
        return cls(int(server_ms), losses, Snapshot.parse(snapshot))


@dataclass(frozen=True, slots=True)
class Survey:
    """What Redis says about itself.

    Attributes:
        server_ms: The time, by its clock.
        losses: Which run of which server it is, since when it holds keys, and how many it has
            evicted. As long as this is the same, nothing but time has removed any.
        milestones: Those that are kept there, oldest first.
    """

    server_ms: int
    losses: str
    milestones: tuple[Milestone, ...]

    def with_milestone(self, snapshot: Snapshot) -> tuple[Milestone, ...]:
        """Return the milestones to keep from now on.

        Args:
            snapshot: Taken after this survey.
        """
        kept: list[Milestone] = []
        for each in (*self._trusted(), Milestone(self.server_ms, self.losses, snapshot)):
            # The last of those kept gives way, not this one: who comes next needs a young one.
            if len(kept) > 1 and each.server_ms - kept[-2].server_ms < _APART_MS:
                kept.pop()
            kept.append(each)
        return tuple(kept)

    def admits(self, seen: Snapshot, writers: Writers) -> bool:
        """Return whether what a snapshot shows may be stored.

        Args:
            seen: What the reader has seen for certain; the survey is younger than its lease.
            writers: What Redis remembered when it granted the lease.
        """
        if writers is None or not all(map(seen.shows, writers)):
            return False
        return any(seen.shows_all_of(each.snapshot) for each in self._trusted())

    def _trusted(self) -> Iterable[Milestone]:
        for each in self.milestones:
            age_ms = self.server_ms - each.server_ms
            if each.losses == self.losses and 0 <= age_ms < OLDEST_MS:
                yield each


def seen_for_certain(snapshot: Snapshot, *, is_standby: bool) -> Snapshot:
    """Return what a transaction with this snapshot has certainly seen.

    A standby does not tell which transactions are in progress: only what is older than all of
    them shows for certain.
    """
    return Snapshot(snapshot.xmin, snapshot.xmin) if is_standby else snapshot
