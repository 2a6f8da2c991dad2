"""How an index over shards stands, for people."""

from typing import Any

from sqlalchemy import Connection, select

from datapatterns.index_table.over_shards.entries import Entries
from datapatterns.index_table.over_shards.reports import ShardIndexConflict, ShardIndexStatus
from datapatterns.index_table.over_shards.stages import on_each, stages, worst
from datapatterns.index_table.schema import index_tables

_ADVICE = {
    "changed": "drop() it, create() it anew, then: datapatterns indexes backfill {name}",
    "missing": "create() it on all shards, with ShardIndexes.create()",
    "detached": "drop() it, create() it anew, then: datapatterns indexes backfill {name}",
    "dropping": "end that with ShardIndexes.drop()",
    "failed": "let each two rows with one key have different ones, then:"
    " datapatterns indexes backfill {name}",
    "building": "index the rest: datapatterns indexes backfill {name}",
    "built": "let it be read: datapatterns indexes backfill {name}",
    "verifying": "unless somebody is at it: datapatterns indexes backfill {name}",
}


def status_of(entries: Entries) -> ShardIndexStatus:
    """Return how the index stands.

    Raises:
        ShardUnavailableError: A shard does not answer.
    """
    name = entries.index.name
    found = stages(entries.access, entries.index)
    state = worst(found)
    advice = _ADVICE.get(state)
    return ShardIndexStatus(
        name,
        state,
        {shard: stage.state for shard, stage in found.items()},
        sum(stage.rows_done for stage in found.values()),
        sum(stage.rows_expected or 0 for stage in found.values()),
        next((stage.failure for stage in found.values() if stage.failure is not None), None),
        None if advice is None else advice.format(name=name),
    )


def conflicts_of(entries: Entries) -> list[ShardIndexConflict]:
    """Return the conflicts that were written down."""
    index = entries.index
    tables = index_tables(index.definition.schema)
    known, conflicts = tables.index_table.c, tables.index_conflict

    def ask(conn: Connection) -> list[Any]:
        index_id = select(known.index_id).where(known.name == index.name).scalar_subquery()
        found = select(
            conflicts.c.key, conflicts.c.base_pk, conflicts.c.holder_pk, conflicts.c.found_at
        ).where(conflicts.c.index_id == index_id)
        return list(conn.execute(found.order_by(conflicts.c.number)))

    return [
        ShardIndexConflict(index.name, shard, *row)
        for shard, rows in on_each(entries.access, ask).items()
        for row in rows
    ]
