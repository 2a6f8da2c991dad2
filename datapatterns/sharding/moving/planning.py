"""Moves in the control database: planned, leased by one worker at a time, and ended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Connection,
    Float,
    and_,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import MoveTakenOverError, StaleMoveError
from datapatterns.sharding.moving.move import Move, MoveState
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.durability import commit_durably
from datapatterns.transactions import resuming

_ENDED = ("cleaned", "aborted")


@contextmanager
def changing_moves(conn: Connection) -> Iterator[Connection]:
    """Open a transaction of this control database that changes moves, and commit it.

    A lease that a crash took back would be given again, and its two workers not notice each other.

    Raises:
        CommitUnansweredError: Nobody knows whether it was committed; resume the move.
    """
    with resuming(conn, "a move of a bucket"):
        commit_durably(conn)
        yield conn


def plan_move(
    conn: Connection, group_id: int, bucket: int, *, source: str, target: str, schema: str
) -> UUID:
    """Write a move down, if the map still says that ``source`` has the bucket; return its id.

    Raises:
        StaleMoveError: It does not, or the bucket is moving already.
    """
    tables = sharding_tables(schema)
    placed, moves = tables.bucket_map, tables.bucket_move
    # The lock keeps others from changing the map in between.
    found = conn.execute(
        select(placed.c.shard_id, placed.c.changing, placed.c.merged_into)
        .where(placed.c.group_id == group_id, placed.c.bucket == bucket)
        .with_for_update(key_share=True)
    ).one_or_none()
    if found is None or found.merged_into is not None:
        raise StaleMoveError(bucket, "there is no such bucket (any more)")
    if found.shard_id != source:
        raise StaleMoveError(bucket, f"the map has it on {found.shard_id!r}, not on {source!r}")
    if found.changing:
        raise StaleMoveError(bucket, "a change of it is under way; finish that before")
    shards = tables.shard
    if conn.scalar(select(shards.c.state).where(shards.c.shard_id == target)) != "active":
        raise StaleMoveError(bucket, f"{target!r} is unknown or not active, so it gets no buckets")
    if source == target:
        raise StaleMoveError(bucket, f"it is on {target!r} already")
    planned = (
        upsert(moves)
        .values(group_id=group_id, bucket=bucket, source=source, target=target)
        .on_conflict_do_nothing()
        .returning(moves.c.move_id)
    )
    move_id: UUID | None = conn.scalar(planned)
    if move_id is None:
        raise StaleMoveError(bucket, "it is moving already; resume that move, or abort it")
    return move_id


def take_lease(
    conn: Connection, move_id: UUID, worker: str, *, seconds: float, schema: str
) -> tuple[Move, int] | None:
    """Become the one worker at a move; return it, and the lease's number.

    None if another is at it, or it has ended.
    """
    tables = sharding_tables(schema)
    moves = tables.bucket_move
    free = or_(
        moves.c.lease_until.is_(None),
        moves.c.lease_until < func.clock_timestamp(),
        moves.c.worker == worker,
    )
    number = conn.scalar(
        update(moves)
        .where(moves.c.move_id == move_id, moves.c.state.not_in(_ENDED), free)
        .values(
            worker=worker,
            lease_until=_from_now(seconds),
            lease_epoch=tables.lease_epoch.next_value(),
            error=None,
        )
        .returning(moves.c.lease_epoch)
    )
    if number is None:
        return None
    [move] = read_moves(conn, schema=schema, move_id=move_id)
    return move, number


def keep_lease(conn: Connection, move: Move, lease: int, *, seconds: float, schema: str) -> None:
    """Stay the worker for a while longer.

    Raises:
        MoveTakenOverError: Another one is.
    """
    _change(conn, move, lease, {"lease_until": _from_now(seconds)}, schema=schema)


def record_state(
    conn: Connection, move: Move, lease: int, state: MoveState, *, schema: str, **facts: object
) -> None:
    """Write down how far the move is.

    Raises:
        MoveTakenOverError: Another worker is at it.
    """
    changes = {"state": state, "updated_at": func.clock_timestamp(), **facts}
    if state in _ENDED:
        changes |= {"worker": None, "lease_until": None}
    _change(conn, move, lease, changes, schema=schema)


def give_back(conn: Connection, move: Move, lease: int, error: str | None, *, schema: str) -> None:
    """Let another worker come, and say what was in the way of this one."""
    moves = sharding_tables(schema).bucket_move
    conn.execute(
        update(moves)
        .where(moves.c.move_id == move.move_id, moves.c.lease_epoch == lease)
        .values(worker=None, lease_until=None, error=error)
    )


def hand_over(
    conn: Connection, move: Move, lease: int, *, pause_ms: float | None, schema: str
) -> None:
    """Let the map say that the target has the bucket, and the move that this is done.

    Raises:
        MoveTakenOverError: Another worker is at it.
    """
    tables = sharding_tables(schema)
    groups, placed = tables.shard_group, tables.bucket_map
    # Its row serialises all changes of the map of one group.
    epoch = conn.scalar(
        update(groups)
        .where(groups.c.group_id == move.group_id)
        .values(epoch=groups.c.epoch + 1)
        .returning(groups.c.epoch)
    )
    conn.execute(
        update(placed)
        .where(placed.c.group_id == move.group_id, placed.c.bucket == move.bucket)
        .values(shard_id=move.target, epoch=epoch)
    )
    facts = {} if pause_ms is None else {"pause_ms": pause_ms}
    record_state(conn, move, lease, "handed_over", schema=schema, **facts)


def read_moves(
    conn: Connection,
    *,
    schema: str,
    move_id: UUID | None = None,
    live: bool = False,
) -> Sequence[Move]:
    """Return moves, the oldest first.

    Args:
        conn: A connection to the control database.
        schema: Where the library's tables live.
        move_id: Only this one.
        live: Only those that have not ended.
    """
    tables = sharding_tables(schema)
    moves, groups = tables.bucket_move, tables.shard_group
    leased = and_(moves.c.lease_until.is_not(None), moves.c.lease_until >= func.clock_timestamp())
    wanted = (
        select(
            moves.c.move_id,
            groups.c.name,
            moves.c.group_id,
            moves.c.bucket,
            moves.c.source,
            moves.c.target,
            moves.c.state,
            leased,
            moves.c.copied_rows,
            moves.c.copied_bytes,
            moves.c.pause_ms,
            moves.c.error,
        )
        .join_from(moves, groups, moves.c.group_id == groups.c.group_id)
        .order_by(moves.c.planned_at, moves.c.move_id)
    )
    if move_id is not None:
        wanted = wanted.where(moves.c.move_id == move_id)
    if live:
        wanted = wanted.where(moves.c.state.not_in(_ENDED))
    return [Move(*row) for row in conn.execute(wanted)]


def seconds_since_change(conn: Connection, move_id: UUID, *, schema: str) -> float:
    """Return how long ago the move came to its state, by the control database's clock."""
    moves = sharding_tables(schema).bucket_move
    age = func.extract("epoch", func.clock_timestamp() - moves.c.updated_at).cast(Float)
    seconds: float = conn.scalars(select(age).where(moves.c.move_id == move_id)).one()
    return seconds


def _change(
    conn: Connection, move: Move, lease: int, changes: dict[str, Any], *, schema: str
) -> None:
    moves = sharding_tables(schema).bucket_move
    changed = conn.execute(
        update(moves)
        .where(moves.c.move_id == move.move_id, moves.c.lease_epoch == lease)
        .values(**changes)
        .returning(moves.c.bucket)
    )
    if changed.one_or_none() is None:
        raise MoveTakenOverError(move.bucket, "the control database")


def _from_now(seconds: float) -> Any:  # noqa: ANN401 -- an expression
    return func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
