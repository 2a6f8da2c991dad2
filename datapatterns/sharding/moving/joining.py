"""Shards that come, are emptied, and go."""

from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

from sqlalchemy import Connection, Engine, Table, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.errors import MoveRefusedError
from datapatterns.sharding.atomic.branches import Branch
from datapatterns.sharding.atomic.recovering import prepared_on
from datapatterns.sharding.maps.initialising import check_empty, check_identity_of, check_ownership
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import sharding_tables
from datapatterns.transactions import reading

ShardState: TypeAlias = Literal["active", "draining", "readonly"]


def introduce(
    conn: Connection,
    shard: str,
    maps: Collection[ShardMap],
    tables: Collection[Table],
    *,
    schema: str,
) -> None:
    """Tell an empty server which shard it is.

    Raises:
        ShardMapExistsError: It holds rows, or owns buckets: it was a shard of another cluster.
        WrongShardError: It is another shard.
    """
    this_shard = sharding_tables(schema).this_shard
    is_new = conn.scalar(select(this_shard.c.shard_id)) is None
    if is_new:
        check_empty(conn, shard, tables)
        conn.execute(upsert(this_shard).values(shard_id=shard).on_conflict_do_nothing())
    check_identity_of(conn, shard, schema=schema)
    check_ownership(conn, shard, maps, schema=schema)


def list_shard(control: Connection, shard: str, *, weight: float, schema: str) -> None:
    """Let the control database know a shard, which may get buckets from now on."""
    _one_at_a_time(control, schema)
    listed = sharding_tables(schema).shard
    new = upsert(listed).values(shard_id=shard, weight=weight)
    control.execute(
        new.on_conflict_do_update(
            index_elements=[listed.c.shard_id], set_={"weight": weight, "state": "active"}
        )
    )


def set_state(control: Connection, shard: str, state: ShardState, *, schema: str) -> None:
    """Say whether a shard may get buckets.

    Raises:
        MoveRefusedError: The control database does not know it.
    """
    listed = sharding_tables(schema).shard
    changed = update(listed).where(listed.c.shard_id == shard).values(state=state)
    if not control.execute(changed).rowcount:
        raise MoveRefusedError(
            f"shard {shard!r}", "the control database does not know it; add it with add_shard()"
        )


def weights_of(control: Connection, *, schema: str) -> tuple[dict[str, float], set[str]]:
    """Return how large each shard is, and those that may get no buckets."""
    listed = sharding_tables(schema).shard
    rows = control.execute(select(listed.c.shard_id, listed.c.weight, listed.c.state)).all()
    weights = {row.shard_id: row.weight for row in rows}
    return weights, {row.shard_id for row in rows if row.state != "active"}


def delist_shard(control: Connection, shard: str, *, schema: str) -> None:
    """Let the control database forget a shard that has no bucket.

    Raises:
        MoveRefusedError: It has some still, or one is on its way.
    """
    _one_at_a_time(control, schema)
    tables = sharding_tables(schema)
    placed, moves = tables.bucket_map, tables.bucket_move
    mine = placed.c.shard_id == shard
    held = control.scalar(
        select(func.count()).select_from(placed).where(mine, placed.c.merged_into.is_(None))
    )
    if held:
        raise MoveRefusedError(f"shard {shard!r}", f"it has {held} buckets; drain() it before")
    with_it = or_(moves.c.source == shard, moves.c.target == shard)
    under_way = moves.c.state.not_in(("cleaned", "aborted"))
    if control.scalar(select(func.count()).select_from(moves).where(with_it, under_way)):
        raise MoveRefusedError(f"shard {shard!r}", "a move from or to it is not done; resume it")
    # Buckets that are no more, having been merged, are where those are that have their keys.
    into = placed.alias("into")
    owner = (
        select(into.c.shard_id)
        .where(into.c.group_id == placed.c.group_id, into.c.bucket == placed.c.merged_into)
        .scalar_subquery()
    )
    control.execute(update(placed).where(mine).values(shard_id=owner))
    control.execute(delete(moves).where(with_it))
    control.execute(delete(tables.shard).where(tables.shard.c.shard_id == shard))


def check_unneeded(engines: Mapping[str, Engine], shard: str, *, schema: str) -> None:
    """Refuse to let a shard go that decides about transactions, or waits for others to.

    Without it, nobody could ever end those.

    Raises:
        MoveRefusedError: There are such.
        ShardUnavailableError: A shard does not answer.
    """
    for name, engine in engines.items():
        with shard_errors(name), engine.connect() as conn, reading(conn):
            for prepared, _ in prepared_on(conn):
                branch = Branch.named(prepared)
                if branch is not None and shard in {branch.primary, branch.shard}:
                    raise MoveRefusedError(
                        f"shard {shard!r}",
                        f"transaction {prepared} on {name} is not ended; run recover() before",
                    )
    decision = sharding_tables(schema).transaction_decision
    with shard_errors(shard), engines[shard].connect() as conn, reading(conn):
        if conn.scalar(select(func.count()).select_from(decision)):
            raise MoveRefusedError(
                f"shard {shard!r}", "its decisions may be needed still; run recover() before"
            )


def _one_at_a_time(control: Connection, schema: str) -> None:
    # The lock of whoever lays out maps.
    key = func.hashtextextended(f"{schema}.shard", 0)
    control.execute(select(func.pg_advisory_xact_lock(key))).close()
