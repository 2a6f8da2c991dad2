"""The life of an index over shards: built while it is written, read when it is whole, dropped."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Final

from datapatterns.errors import (
    IndexChangedError,
    IndexDetachedError,
    IndexMissingError,
    ShardIndexFailedError,
    ShardIndexGoneError,
    ShardIndexNotReadyError,
)
from datapatterns.failpoints import failpoint
from datapatterns.index_table.creating import drop_index
from datapatterns.index_table.maintenance import function_name, view_name
from datapatterns.index_table.over_shards.backfilling import (
    LEASE_SECONDS,
    OnShardChunk,
    ShardBackfill,
    ShardProgress,
    forget_conflicts,
    note_conflicts,
)
from datapatterns.index_table.over_shards.entries import Entries
from datapatterns.index_table.over_shards.owners import buckets_of_rows
from datapatterns.index_table.over_shards.reports import ShardIndexReport
from datapatterns.index_table.over_shards.settling import Conflict
from datapatterns.index_table.over_shards.stages import Stage, become, stages, worst
from datapatterns.index_table.over_shards.verifying import Comparison
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.statements import run, table_name
from datapatterns.transactions import fresh_reads, resuming

_ROUNDS_MAX: Final = 10
"""How often another process is seen to have changed its state in the middle."""

OTHERS_SECONDS: Final = 0.5
"""How often to look how far others are who index the rows of a shard."""


def tell_nobody(_progress: ShardProgress) -> None:
    """Tell nobody how far it is."""


@dataclass(frozen=True, slots=True)
class BuildPace:
    """How fast rows are indexed.

    Attributes:
        chunk_rows: How many rows at once; their entries are locked while they are made.
        pause_seconds: How long to leave the servers alone after each chunk, on each shard.
        lease_seconds: How long others leave a shard to a process that has died.
        on_chunk: Is told how far it is.
    """

    chunk_rows: int = 5_000
    pause_seconds: float = 0.0
    lease_seconds: float = LEASE_SECONDS
    on_chunk: OnShardChunk = tell_nobody

    def __post_init__(self) -> None:
        if self.chunk_rows < 1:
            raise ValueError(f"chunk_rows={self.chunk_rows}: a chunk has at least one row")


def build(entries: Entries, pace: BuildPace, *, lock_seconds: float) -> ShardIndexReport:
    """Index the rows from before, compare, and let the index be read.

    Raises:
        ShardIndexFailedError: Two rows have one key.
        ShardIndexGoneError: It was dropped meanwhile.
        ShardIndexNotReadyError: It is being dropped.
    """
    found = existing(entries)
    if worst(found) == "dropping":
        raise ShardIndexNotReadyError(entries.index.name, state="dropping")
    _backfill(entries, found, pace, lock_seconds)
    failpoint("index.backfilled")
    for _ in range(_ROUNDS_MAX):
        try:
            return _finish(entries, existing(entries), lock_seconds)
        except ShardIndexGoneError:
            # It may be that somebody else, who builds it too, was faster with its next state.
            if _ids(existing(entries)) != _ids(found):
                raise
    raise ShardIndexGoneError(entries.index.name)


def existing(entries: Entries) -> dict[str, Stage]:
    """Return how the index stands, by shard, if writers of all of them keep it.

    Raises:
        IndexChangedError: On a shard it was built from another definition.
        IndexDetachedError: On a shard writers pass it by.
        IndexMissingError: On a shard it was never created.
    """
    index = entries.index
    found = stages(entries.access, index)
    match worst(found):
        case "changed":
            raise IndexChangedError(index.name)
        case "missing":
            raise IndexMissingError(index.name)
        case "detached":
            raise IndexDetachedError(index.name, table=index.definition.base.fullname)
        case _:
            return found


def drop(entries: Entries) -> bool:
    """Have nobody read the index, then nobody write it, then forget it; repeat it after a crash.

    Its own table stays, empty: it is among the application's, whose migrations drop it.

    Returns:
        Whether there was one.
    """
    access, index = entries.access, entries.index
    known = index_tables(index.definition.schema).index_table
    engines = access.companions.side_engines
    there = {}
    for shard, engine in engines.items():
        with (
            access.asking(shard),
            fresh_reads(engine) as conn,
            resuming(conn, f"dropping index {index.name}"),
        ):
            of_name = known.c.name == index.name
            there[shard] = conn.execute(
                known.update().where(of_name).values(state="dropping", failure=None)
            ).rowcount
    if not any(there.values()):
        return False
    failpoint("index.no-more-read")
    names = function_name(index.definition), view_name(index.definition)
    steps = (
        # Waits for transactions that have noted what they change, and will claim it.
        f"DROP FUNCTION IF EXISTS {names[0]}() CASCADE; DROP VIEW IF EXISTS {names[1]}",
        f"TRUNCATE {table_name(index.table)}",
    )
    for step in steps:
        for shard, engine in engines.items():
            with (
                access.asking(shard),
                fresh_reads(engine) as conn,
                resuming(conn, f"dropping index {index.name}"),
            ):
                run(conn, step)
            failpoint("index.shard-dropped")
    for shard, engine in engines.items():
        with (
            access.asking(shard),
            fresh_reads(engine) as conn,
            resuming(conn, f"dropping index {index.name}"),
        ):
            drop_index(conn, index.name, schema=index.definition.schema)
    return True


def _backfill(
    entries: Entries, found: Mapping[str, Stage], pace: BuildPace, lock_seconds: float
) -> None:
    """Index the rows of all shards at once; of those that others are at, wait until they are."""
    telling, stopping = Lock(), Event()
    waiting = Event()
    left = {shard: stage for shard, stage in found.items() if stage.state == "building"}
    while left:
        works = {
            shard: ShardBackfill(
                entries,
                shard,
                _id_of(stage),
                lock_seconds,
                pace.chunk_rows,
                pace.pause_seconds,
                pace.lease_seconds,
                pace.on_chunk,
                telling,
                stopping,
            )
            for shard, stage in left.items()
        }
        questions = {shard: partial(_run, work) for shard, work in works.items()}
        answers = entries.access.fan_out.answers(questions, interrupt=stopping.set)
        done = {shard for shard, answer in answers.items() if answer.result()}
        left = {shard: stage for shard, stage in left.items() if shard not in done}
        if left:
            waiting.wait(OTHERS_SECONDS)


def _run(work: ShardBackfill) -> bool:
    return work.run()


def _finish(entries: Entries, found: Mapping[str, Stage], lock_seconds: float) -> ShardIndexReport:
    access, index = entries.access, entries.index
    if worst(found) == "ready":  # somebody else was faster
        return Comparison(entries, lock_seconds).run()
    due = {shard: stage for shard, stage in found.items() if stage.state != "ready"}
    become(access, index, "verifying", among=due, was=("building", "failed"))
    failpoint("index.verifying")
    comparison = Comparison(entries, lock_seconds, mend=True)
    report = comparison.run()
    _note(entries, found, comparison.conflicts)
    if report.clean:
        become(access, index, "ready", among=due, was=("verifying",))
        failpoint("index.ready")
        return report
    failure = (
        f"{report.missing} rows without entry, {report.different} entries that differ from their"
        f" row, {report.undecided} rows that somebody is about to change"
    )
    if comparison.conflicts:
        failure += f"; {len(comparison.conflicts)} rows have a key that another row has"
    become(access, index, "failed", among=found, was=("verifying", "ready"), failure=failure)
    raise ShardIndexFailedError(index.name, failure=failure)


def _note(entries: Entries, found: Mapping[str, Stage], conflicts: list[Conflict]) -> None:
    """Write conflicts down where their rows are, in the place of those from before."""
    access, index = entries.access, entries.index
    _, placed = buckets_of_rows(access, index, {each.wanted.row for each in conflicts})
    rows = {shard: {*mine} for shard, (_, mine) in placed.items()}
    for shard, stage in found.items():
        with (
            access.asking(shard),
            fresh_reads(access.companions.side_engines[shard]) as conn,
            resuming(conn, f"conflicts of index {index.name}"),
        ):
            forget_conflicts(conn, index, _id_of(stage))
            mine = [each for each in conflicts if each.wanted.row in rows.get(shard, set())]
            note_conflicts(conn, index, _id_of(stage), mine)


def _ids(found: Mapping[str, Stage]) -> dict[str, int | None]:
    return {shard: stage.index_id for shard, stage in found.items()}


def _id_of(stage: Stage) -> int:
    assert stage.index_id is not None  # it exists
    return stage.index_id
