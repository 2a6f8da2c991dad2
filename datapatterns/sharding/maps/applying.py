"""Changes of a map in the control database: written down, applied, and forgotten when done."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import MapChangeRefusedError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.map_change import MapChange
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sharding.strategies.key_bytes import decoded, encoded

ChangeState: TypeAlias = Literal["begun", "applied"]


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A change that has been written down.

    Attributes:
        group_id: What the servers call the group.
        change: What it is.
        generation: That of the losing bucket afterwards.
        is_applied: Whether the map has it already, and only the shard may not.
    """

    group_id: int
    change: MapChange
    generation: int
    is_applied: bool

    @property
    def busy_bucket(self) -> int:
        """Return the bucket that transactions of the map before would use."""
        return self.change.gaining if self.change.losing is None else self.change.losing


def read_change(
    conn: Connection, group: EntityGroup, *, schema: str, alone: bool = False
) -> PendingChange | None:
    """Return the change of a group's map that is under way; None if there is none.

    Args:
        conn: A connection to the control database.
        group: The group.
        schema: Where the library's tables live.
        alone: Whether to keep others from changing this map until the transaction ends.
    """
    tables = sharding_tables(schema)
    groups, changes = tables.shard_group, tables.map_change
    if alone:
        conn.execute(
            select(groups.c.group_id).where(groups.c.name == group.name).with_for_update()
        ).close()
    row = conn.execute(
        select(changes)
        .join_from(changes, groups, changes.c.group_id == groups.c.group_id)
        .where(groups.c.name == group.name)
    ).one_or_none()
    if row is None:
        return None
    change = MapChange(
        group.name,
        row.kind,
        decoded(bytes(row.key), group.python_type),
        row.losing,
        row.gaining,
        row.shard_id,
    )
    return PendingChange(row.group_id, change, row.generation, row.state == "applied")


def refuse_moving(
    conn: Connection, shard_map: ShardMap, change: MapChange, *, schema: str, alone: bool = False
) -> None:
    """Refuse to change buckets that move, or whose relatives do.

    What moves prepares its target by the map of when it began: that may have triggers of buckets
    that these keys were in before, and a change in between would be undone there.

    Args:
        conn: A connection to the control database.
        shard_map: The group's map.
        change: What is to change.
        schema: Where the library's tables live.
        alone: Whether to let whoever plans a move of them wait until the transaction ends.

    Raises:
        MapChangeRefusedError: One of them moves.
    """
    tables = sharding_tables(schema)
    placed, moves = tables.bucket_map, tables.bucket_move
    buckets = _relatives(shard_map, change)
    if alone:
        conn.execute(
            select(placed.c.bucket)
            .where(placed.c.group_id == shard_map.group_id, placed.c.bucket.in_(buckets))
            .order_by(placed.c.bucket)
            .with_for_update()
        ).close()
    moving = conn.execute(
        select(moves.c.bucket, moves.c.state).where(
            moves.c.group_id == shard_map.group_id,
            moves.c.bucket.in_(buckets),
            moves.c.state.not_in(("cleaned", "aborted")),
        )
    ).first()
    if moving is not None:
        raise MapChangeRefusedError(
            change.group,
            f"bucket {moving.bucket} is moving ({moving.state})",
            "let the move end, until its source is clean, or abort it",
        )


def _relatives(shard_map: ShardMap, change: MapChange) -> list[int]:
    buckets = {change.gaining} if change.losing is None else {change.losing, change.gaining}
    return sorted(shard_map.relatives(buckets))


def record_change(
    conn: Connection, shard_map: ShardMap, change: MapChange, *, schema: str
) -> PendingChange:
    """Write a change down, and let neither its buckets nor their relatives move before its end."""
    tables, group_id = sharding_tables(schema), shard_map.group_id
    placed = tables.bucket_map
    rows = conn.execute(
        update(placed)
        .where(placed.c.group_id == group_id, placed.c.bucket.in_(_relatives(shard_map, change)))
        .values(changing=True)
        .returning(placed.c.bucket, placed.c.generation)
    )
    generations = {row.bucket: row.generation for row in rows}
    # Who gives all its keys away is no more; nobody is misled by what it was.
    raised = 0 if change.ends_bucket or change.losing is None else 1
    generation = raised + (0 if change.losing is None else generations[change.losing])
    conn.execute(
        insert(tables.map_change).values(
            group_id=group_id,
            kind=change.kind,
            key=encoded(change.key),
            label=str(change.key),
            losing=change.losing,
            gaining=change.gaining,
            shard_id=change.shard,
            generation=generation,
        )
    )
    return PendingChange(group_id, change, generation, is_applied=False)


def apply_change(conn: Connection, pending: PendingChange, *, schema: str) -> int:
    """Let the map have the change; return its epoch. Done twice, it is done once."""
    tables = sharding_tables(schema)
    groups, changes = tables.shard_group, tables.map_change
    epoch: int = conn.scalars(
        select(groups.c.epoch).where(groups.c.group_id == pending.group_id).with_for_update()
    ).one()
    is_ours = conn.scalar(
        update(changes)
        .where(_is(pending, changes), changes.c.state == "begun")
        .values(state="applied")
        .returning(changes.c.group_id)
    )
    if is_ours is None:  # another process was faster
        return epoch
    conn.execute(
        update(groups).where(groups.c.group_id == pending.group_id).values(epoch=epoch + 1)
    )
    _change_buckets(conn, pending, epoch + 1, schema)
    _change_places(conn, pending, schema)
    return epoch + 1


def forget_change(
    conn: Connection, pending: PendingChange, *, schema: str, state: ChangeState = "applied"
) -> bool:
    """Let the next change come, and the buckets move again; return whether it was in ``state``."""
    tables = sharding_tables(schema)
    placed, changes = tables.bucket_map, tables.map_change
    gone = conn.scalar(
        delete(changes)
        .where(_is(pending, changes), changes.c.state == state)
        .returning(changes.c.group_id)
    )
    if gone is not None:
        conn.execute(
            update(placed)
            .where(placed.c.group_id == pending.group_id, placed.c.changing)
            .values(changing=False)
        )
    return gone is not None


def _is(pending: PendingChange, changes: Table) -> ColumnElement[bool]:
    """Another process may have brought it to its end, and begun the next one."""
    change = pending.change
    return and_(
        changes.c.group_id == pending.group_id,
        changes.c.kind == change.kind,
        changes.c.key == encoded(change.key),
        changes.c.losing.is_not_distinct_from(change.losing),
        changes.c.gaining == change.gaining,
        changes.c.generation == pending.generation,
    )


def _change_buckets(conn: Connection, pending: PendingChange, epoch: int, schema: str) -> None:
    placed, change = sharding_tables(schema).bucket_map, pending.change
    if change.makes_bucket:
        conn.execute(
            insert(placed).values(
                group_id=pending.group_id,
                bucket=change.gaining,
                shard_id=change.shard,
                parent=change.losing,
                epoch=epoch,
                changing=True,
            )
        )
    if change.losing is None:
        return
    after: dict[str, object] = {"epoch": epoch, "generation": pending.generation}
    if change.ends_bucket:
        after["merged_into"] = change.gaining
    if change.kind == "assign":
        other_than = func.array_remove(placed.c.assigned_to, change.gaining)
        after["assigned_to"] = func.array_append(other_than, change.gaining)
    conn.execute(
        update(placed)
        .where(placed.c.group_id == pending.group_id, placed.c.bucket == change.losing)
        .values(after)
    )


def _change_places(conn: Connection, pending: PendingChange, schema: str) -> None:
    tables, change = sharding_tables(schema), pending.change
    ranges, keys = tables.range_map, tables.key_map
    key, label = encoded(change.key), str(change.key)
    if change.kind == "split":
        conn.execute(
            insert(ranges).values(
                group_id=pending.group_id, lower_bound=key, label=label, bucket=change.gaining
            )
        )
    elif change.kind == "merge":
        conn.execute(
            delete(ranges).where(ranges.c.group_id == pending.group_id, ranges.c.lower_bound == key)
        )
        # Keys that were put there by name go along.
        conn.execute(
            update(keys)
            .where(keys.c.group_id == pending.group_id, keys.c.bucket == change.losing)
            .values(bucket=change.gaining)
        )
    elif change.kind == "unpin":
        conn.execute(
            delete(keys).where(
                keys.c.group_id == pending.group_id, keys.c.kind == "pin", keys.c.key == key
            )
        )
    else:
        kind = "pin" if change.kind == "pin" else "entry"
        conn.execute(
            upsert(keys)
            .values(
                group_id=pending.group_id, kind=kind, key=key, label=label, bucket=change.gaining
            )
            .on_conflict_do_update(
                index_elements=["group_id", "kind", "key"], set_={"bucket": change.gaining}
            )
        )
