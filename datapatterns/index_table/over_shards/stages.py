"""Where an index over shards is in its life, on each shard; that is where it is written down.

Look-ups read it there in their own statement, so it needs no epoch and nobody is told of it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection, exists, select, update

from datapatterns.errors import (
    IndexChangedError,
    IndexDetachedError,
    IndexMissingError,
    ShardIndexGoneError,
)
from datapatterns.index_table.creating import create_index
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.states import index_status
from datapatterns.sharding.access import ShardAccess
from datapatterns.transactions import fresh_reads, reading, resuming

T = TypeVar("T")

WORST_FIRST: Final = (
    "changed",
    "missing",
    "detached",
    "dropping",
    "failed",
    "building",
    "built",
    "verifying",
    "ready",
)
"""All states; an index is in that of the shard where it is in the worst."""


@dataclass(frozen=True, slots=True)
class Stage:
    """How an index stands on one shard.

    Attributes:
        state: One of ``WORST_FIRST``.
        index_id: Its number there; another one if it was created anew. None if it isn't there.
        rows_done: How many rows from before have been looked at.
        rows_expected: Of about how many; None if nobody has begun.
        failure: Why it has failed.
    """

    state: str
    index_id: int | None = None
    rows_done: int = 0
    rows_expected: int | None = None
    failure: str | None = None


def stage_on(conn: Connection, definition: IndexDefinition) -> Stage:
    """Return how the index stands on the shard of ``conn``."""
    try:
        status = index_status(conn, definition)
    except IndexMissingError:
        return Stage("missing")
    except IndexChangedError:
        return Stage("changed")
    except IndexDetachedError:
        known = index_tables(definition.schema).index_table
        state = conn.scalar(select(known.c.state).where(known.c.name == definition.name))
        # Whoever drops it takes its triggers away first.
        return Stage("dropping" if state == "dropping" else "detached")
    tables = index_tables(definition.schema)
    known, backfills = tables.index_table, tables.index_backfill
    found = conn.execute(
        select(backfills.c.done, backfills.c.rows_done, backfills.c.rows_expected, known.c.failure)
        .select_from(known.join(backfills, backfills.c.index_id == known.c.index_id))
        .where(known.c.index_id == status.index_id)
    ).one_or_none()
    if found is None:  # somebody has dropped it just now
        return Stage("missing")
    state = "built" if status.state == "building" and found.done else status.state
    if not status.kept and state != "dropping":
        state = "detached"
    return Stage(state, status.index_id, found.rows_done, found.rows_expected, found.failure)


def stages(access: ShardAccess, index: ShardedIndex) -> dict[str, Stage]:
    """Return how the index stands, by shard.

    Raises:
        ShardUnavailableError: A shard does not answer.
    """
    return on_each(access, lambda conn: stage_on(conn, index.definition))


def worst(found: Mapping[str, Stage]) -> str:
    """Return the state of an index that stands as ``found`` on its shards."""
    return min((stage.state for stage in found.values()), key=WORST_FIRST.index)


def become(
    access: ShardAccess,
    index: ShardedIndex,
    state: str,
    *,
    among: Mapping[str, Stage],
    was: Collection[str],
    failure: str | None = None,
) -> None:
    """Let the index be in ``state`` on all shards, one after the other.

    Args:
        access: The way to the shards.
        index: Which index.
        state: The next one.
        among: How it stood; it must still be the same index.
        was: In which of these states it must be; ``state`` itself is as good.
        failure: Why it has failed.

    Raises:
        CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
        ShardIndexGoneError: It is in another state, or another index.
    """
    known = index_tables(index.definition.schema).index_table
    for shard, stage in among.items():
        changed = (
            update(known)
            .where(known.c.index_id == stage.index_id, known.c.state.in_([*was, state]))
            .values(state=state, failure=failure)
        )
        with (
            access.asking(shard),
            fresh_reads(access.companions.side_engines[shard]) as conn,
            resuming(conn, f"index {index.name} becoming {state}"),
        ):
            if conn.execute(changed).rowcount != 1:
                raise ShardIndexGoneError(index.name)


def join(access: ShardAccess, index: ShardedIndex, shard: str, others: Iterable[str]) -> None:
    """Have writers of a shard keep the index, which has no rows yet; it is as far as elsewhere.

    Raises:
        CommitUnansweredError: The answer to a COMMIT was lost; do the same again.
        IndexDefinitionError: Its table there can't be indexed.
        ShardUnavailableError: A shard does not answer.
    """
    found = on_each(access, lambda conn: stage_on(conn, index.definition), others)
    if not any(stage.index_id is not None for stage in found.values()):
        return  # it is declared, and was never created
    tables = index_tables(index.definition.schema)
    known, backfills = tables.index_table, tables.index_backfill
    with (
        access.asking(shard),
        fresh_reads(access.companions.side_engines[shard]) as conn,
        resuming(conn, f"index {index.name} on shard {shard}"),
    ):
        base = index.definition.base
        # Its triggers have let nobody write since, so what is empty now has nothing from before.
        if (
            create_index(conn, index.definition)
            and worst(found) == "ready"
            and not conn.scalar(select(exists().select_from(base)))
        ):
            # Else look-ups would refuse until somebody says so.
            own = select(known.c.index_id).where(known.c.name == index.name).scalar_subquery()
            conn.execute(update(known).where(known.c.index_id == own).values(state="ready"))
            done = update(backfills).where(backfills.c.index_id == own)
            conn.execute(done.values(done=True, rows_expected=0))


def on_each(
    access: ShardAccess, ask: Callable[[Connection], T], only: Iterable[str] | None = None
) -> dict[str, T]:
    """Return what ``ask`` finds out on each shard, in a transaction that only reads.

    Raises:
        ShardUnavailableError: A shard does not answer.
    """
    shards = access.companions.side_engines if only is None else only
    answers = access.fan_out.answers(
        {shard: partial(_asked, access, shard, ask) for shard in shards}
    )
    return {shard: answer.result() for shard, answer in answers.items()}


def _asked(access: ShardAccess, shard: str, ask: Callable[[Connection], T]) -> T:
    with (
        access.asking(shard),
        fresh_reads(access.companions.side_engines[shard]) as conn,
        reading(conn),
    ):
        return ask(conn)
