"""What the control database knows of migrations of all shards."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, Connection, Text, cast, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.sharding.migrating.shard_work import ShardOutcome, State
from datapatterns.sharding.schema import shard_migration_table
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_ERROR_LETTERS = 500


@dataclass(frozen=True, slots=True)
class ShardRun:
    """How far one run has come on one shard.

    Attributes:
        shard: Its name.
        state: ``pending``, ``running``, ``done``, ``failed``, ``blocked`` or ``unavailable``. One
            that says ``running`` and is not has died; the next run goes on with it.
        attempts: How often it was begun.
        error: What went wrong last.
        finished_at: When it ended.
    """

    shard: str
    state: State
    attempts: int = 0
    error: str | None = None
    finished_at: datetime | None = None


def run_to_resume(
    conn: Connection, direction: str, revision: str, *, schema: str = DEFAULT_SCHEMA
) -> UUID:
    """Return the run of the same kind that came to no end, or a new one's id."""
    table = shard_migration_table(schema)
    newest = (
        select(table.c.run_id, table.c.direction, table.c.revision)
        .order_by(table.c.begun_at.desc())
        .limit(1)
    )
    last = conn.execute(newest).one_or_none()
    if last is None or (last.direction, last.revision) != (direction, revision):
        return uuid4()
    unfinished = select(table.c.shard_id).where(
        table.c.run_id == last.run_id, table.c.state != "done"
    )
    return last.run_id if conn.scalar(select(unfinished.exists())) else uuid4()


def note_shards(
    conn: Connection,
    run: UUID,
    shards: Collection[str],
    *,
    direction: str,
    revision: str,
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Write down which shards a run is for; those that it has already stay as they are."""
    table = shard_migration_table(schema)
    rows = [
        {"run_id": run, "shard_id": shard, "direction": direction, "revision": revision}
        for shard in shards
    ]
    conn.execute(upsert(table).on_conflict_do_nothing(), rows)


def note_begun(conn: Connection, run: UUID, shard: str, *, schema: str = DEFAULT_SCHEMA) -> None:
    """Write down that a shard is being migrated."""
    table = shard_migration_table(schema)
    conn.execute(
        update(table)
        .where(table.c.run_id == run, table.c.shard_id == shard)
        .values(
            state="running",
            attempts=table.c.attempts + 1,
            error=None,
            started_at=func.clock_timestamp(),
            finished_at=None,
        )
    )


def note_ended(
    conn: Connection, run: UUID, outcome: ShardOutcome, *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Write down what became of a shard."""
    table = shard_migration_table(schema)
    conn.execute(
        update(table)
        .where(table.c.run_id == run, table.c.shard_id == outcome.shard)
        .values(
            state=outcome.state,
            heads=cast(list(outcome.heads), ARRAY(Text)),
            fingerprint=outcome.fingerprint,
            error=outcome.error and outcome.error[:_ERROR_LETTERS],
            finished_at=func.clock_timestamp(),
        )
    )


def shard_runs(
    conn: Connection, run: UUID | None = None, *, schema: str = DEFAULT_SCHEMA
) -> tuple[ShardRun, ...]:
    """Return how far a run has come, by shard; of the last one unless it is named."""
    table = shard_migration_table(schema)
    if run is None:
        run = conn.scalar(select(table.c.run_id).order_by(table.c.begun_at.desc()).limit(1))
    rows = conn.execute(
        select(
            table.c.shard_id,
            table.c.state,
            table.c.attempts,
            table.c.error,
            table.c.finished_at,
        )
        .where(table.c.run_id == run)
        .order_by(table.c.shard_id)
    )
    return tuple(
        ShardRun(row.shard_id, row.state, row.attempts, row.error, row.finished_at) for row in rows
    )
