"""Places where the process may be made to die, to prove that dying there does no harm.

Each stands between two effects of which a crash may leave one: a COMMIT and what Redis is told of
it, a copy of data and the name that makes it valid. Passing one that is not armed costs a call and
a look at an empty dict.

``DATAPATTERNS_FAILPOINTS`` arms them for a whole process, which then ends at once, as by SIGKILL,
with the exit code 86: ``"relay.sent"``, or ``"relay.sent@3"`` for the third time, or several after
commas. `armed` arms one in this process, with an action of the test's.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Final, NoReturn

EXIT_CODE: Final = 86
"""What a process ends with that died at a failpoint."""

VARIABLE: Final = "DATAPATTERNS_FAILPOINTS"
"""The environment variable that arms failpoints for a whole process."""

FAILPOINTS: Final[Mapping[str, str]] = {
    # name: what has happened by then, and what has not
    "archive.moved": "events are in the archive or back, and not committed yet",
    "atomic.branch-prepared": "a shard has prepared its part, and nothing is decided yet",
    "atomic.branch-settled": "a shard has followed the decision, and others may not have",
    "atomic.decided": "a transaction has happened, and only its primary shows it",
    "atomic.decision-written": "the primary is about to commit a transaction over several shards",
    "build.begun": "the tables of a version are there, and empty",
    "build.finished": "a version is whole in tables of its own, and does not follow the log yet",
    "build.folded": "all rows of a segment are known, and none is written yet",
    "build.rows-copied": "all rows of a segment are written, and the checkpoint is not moved yet",
    "build.segment-claimed": "a builder has a segment, and has not read anything yet",
    "build.segments-built": "all segments are written, and there are no indexes yet",
    "cache.lease-granted": "a reader may fill an entry, and has not read the database yet",
    "cache.value-loaded": "a value is read, and not in Redis yet",
    "cache.write-committed": "a write has committed, and Redis has not been told",
    "cache.write-fenced": "a strict write is fenced, and not committed yet",
    "chain.hashed": "events are hashed, and the seal is not written yet",
    "chain.sealed": "a segment is sealed, and the anchor does not know",
    "command.committed": "a command is committed, and nobody has been told",
    "command.result-noted": "a command's effects and its result are written, not committed yet",
    "copy.page-appended": "a page is in the copy of a stream, and is not committed yet",
    "copy.source-locked": "a stream is locked, and what it has got since is not copied yet",
    "embedded.cache-begun": "a folder that owners share has a place, and is not made yet",
    "embedded.data-begun": "a cluster has a place for its files, and has none yet",
    "embedded.folder-made": "a folder for servers exists, and nobody owns it yet",
    "embedded.process-started": "a server's process runs, and does not answer yet",
    "import.streams-claimed": "streams have their new versions, and not the events yet",
    "index.backfilled": "all rows of all shards have entries, and nobody has compared them yet",
    "index.base-committed": "rows are committed, and the keys they gave up are not forgotten yet",
    "index.changes-applied": "changes are in the index, and the consumer is not moved yet",
    "index.chunk-indexed": "rows are indexed, and the progress is not moved yet",
    "index.compared": "an index was compared with its table, and nobody is told how it stands",
    "index.digested": "rows are summed up, and the entries of the index not yet",
    "index.keys-claimed": "all keys are claimed, and the rows are not committed yet",
    "index.keys-handed-over": "entries lead to other rows, in a transaction not committed yet",
    "index.keys-locked": "all keys are locked on the shards of their rows, and none is claimed",
    "index.no-more-read": "nobody reads an index that is dropped, and writers keep it still",
    "index.orphans-seen": "entries were seen to lead nowhere, and are not removed yet",
    "index.page-claimed": "a page of rows has entries, and that is not noted yet",
    "index.page-noted": "a page of rows is indexed and noted, and the next is not begun",
    "index.page-read": "a page of rows is read, and none of them has an entry by that",
    "index.ready": "an index over shards is read, and nobody has been told",
    "index.shard-dropped": "a shard has done a step of dropping an index, and the next has not",
    "index.some-claimed": "keys of one shard are claimed, and of others not yet",
    "index.verifying": "all shards say that an index is being compared, which has not begun",
    "index.walked": "an index was compared row by row, and has not been told to be read",
    "map-change.applied": "a map has changed, and its shard takes those with the old one, too",
    "map-change.begun": "a change of a map is written down, and nobody has been told",
    "map-change.prepared": "a shard takes those with the new map, too, and there is none yet",
    "map-change.settled": "a shard takes none with the old map, and the change is not ended yet",
    "messages.published": "messages were published, and the outbox has them still",
    "migration.begun": "a migration has its turn, and has changed nothing yet",
    "migration.committed": "one database is migrated, and the next is not",
    "migration.revised": "the tables are changed, and not committed yet",
    "move.batch-cleaned": "a shard has some rows fewer of a bucket that it does not own",
    "move.captured": "a shard notes what changes in a bucket, and nothing is copied yet",
    "move.copied": "a bucket is on two shards, and the move does not say so yet",
    "move.cut": "a shard has given a bucket up, and nobody else has it yet",
    "move.cut-written": "a shard is about to give a bucket up, and its writers wait",
    "move.drained": "writers of a bucket wait, and both shards hold the same, not compared yet",
    "move.handed-over": "a bucket is on another shard, and the former has its rows still",
    "move.planned": "a move is written down, and nobody works at it",
    "move.source-cleaned": "a shard has given a bucket away with all its rows; not noted yet",
    "move.target-owns": "a shard has a bucket, and the map does not say so yet",
    "projection.lease-claimed": "a runner has a lease, and has not done anything yet",
    "projection.mode-set": "a projection is to be kept in another way, not committed yet",
    "projection.page-applied": "rows are written, and the checkpoint is not moved yet",
    "projection.page-committed": "a page is committed, and the lease is not given back",
    "promote.barred": "the live version is held, and the new one does not show as much yet",
    "promote.committed": "a version is live, and nobody has been told",
    "promote.locked": "readers wait, and nothing is renamed yet",
    "promote.swapped": "the tables have their new names, and that is not committed yet",
    "rebuild.leases-taken": "other runners are fenced off, and nothing is replayed yet",
    "rebuild.replayed": "the new rows are complete, and readers see the old ones",
    "rebuild.rows-replaced": "the rows are swapped, and this version is not the live one yet",
    "rebuild.swapped": "the swap is committed, and the leases are not given back",
    "redis-projection.build-confirmed": "PostgreSQL knows of a build, and Redis does not yet",
    "redis-projection.clearing": "Redis knows of a build, and holds leftovers of another",
    "redis-projection.page-applied": "Redis has a page, and PostgreSQL does not know",
    "redis-projection.page-read": "a page is read and confirmed, and not in Redis yet",
    "redis-projection.skip-noted": "an event is noted as skipped, and Redis is still before it",
    "redis-rebuild.begun": "PostgreSQL knows of a new build, and Redis holds the old one",
    "reference.branches-settled": "what has happened on a shard can be seen, and is not read yet",
    "reference.children-looked": "a row is deleted that nobody refers to, and it is not committed",
    "reference.parents-locked": "a row has come to refer to another, and nothing is committed yet",
    "relay.committed": "invalidations are noted as sent, and the server is not vouched for",
    "relay.mark-removed": "a strange server is not vouched for, and has no new generation yet",
    "relay.sent": "Redis has been told of invalidations, and that is not noted yet",
    "retry.applied": "what was parked is applied, and not committed yet",
    "retry.committed": "a page of what was parked is committed, and the lease is not given back",
    "retry.lease-taken": "a runner is fenced off, and nothing that was parked is applied yet",
    "segments.held-level": "segments to be merged are held at one position, and not there yet",
    "retire.cleared": "Redis has forgotten a version, and PostgreSQL has not",
    "shard-map.recorded": "the control database has a map, and no shard does",
    "shard-map.shard-told": "a shard knows what it owns, and the next does not",
    "shard-migration.locked": "a shard's tables are kept for a migration, which has not begun",
    "shard-migration.migrated": "a shard is migrated, and nobody has been told",
    "shard-migration.recorded": "a shard is noted as migrated, and the next is not begun",
    "view.rows-written": "a view's rows are new, and its consumer is where it was",
    "view.switched": "a view shows its next version, which has another name yet; not committed",
    "view.tables-captured": "changes are captured, and the view is not there yet",
}
"""Every failpoint there is."""

Action = Callable[[], object]
"""What is done at a failpoint that is armed; it may block, raise, or end the process."""


class _Armed:
    """One failpoint with what is done there, at one visit or at each."""

    def __init__(self, action: Action, visit: int | None) -> None:
        self._action = action
        self._visit = visit
        self._visits = 0
        self._lock = Lock()

    def reached(self) -> None:
        with self._lock:
            self._visits += 1
            is_due = self._visit in {None, self._visits}
        if is_due:
            self._action()


_armed: dict[str, _Armed] = {}


def failpoint(name: str) -> None:
    """Mark a place where dying must do no harm; does nothing unless it is armed."""
    if _armed and (found := _armed.get(name)) is not None:
        found.reached()


@contextmanager
def armed(name: str, action: Action, *, visit: int | None = 1) -> Iterator[None]:
    """Do ``action`` at the failpoint ``name`` within the block, in whatever thread gets there.

    Args:
        name: One of ``FAILPOINTS``.
        action: Called without arguments. What it raises, the code under test raises.
        visit: At which visit, counted from 1; None for each of them.

    Raises:
        ValueError: There is no such failpoint, it is armed already, or ``visit`` is below 1.
    """
    _arm(name, action, visit)
    try:
        yield
    finally:
        del _armed[name]


def _arm(name: str, action: Action, visit: int | None) -> None:
    if name not in FAILPOINTS:
        raise ValueError(f"{name!r} is no failpoint; there are {', '.join(sorted(FAILPOINTS))}")
    if visit is not None and visit < 1:
        raise ValueError(f"visit {visit} of {name!r} never comes; count from 1")
    if name in _armed:
        raise ValueError(f"failpoint {name!r} is armed already; disarm it first")
    _armed[name] = _Armed(action, visit)


def _arm_from_environment(setting: str) -> None:
    for part in filter(None, map(str.strip, setting.split(","))):
        name, at, visit = part.partition("@")
        if at and not visit.isdecimal():
            raise ValueError(f"{VARIABLE}: {part!r} should be a name, or a name@3")
        _arm(name, _die, int(visit or 1))


def _die() -> NoReturn:
    # No handler, no finally, no buffer is flushed: as if the machine had stopped the process.
    os._exit(EXIT_CODE)


_arm_from_environment(os.environ.get(VARIABLE, ""))
