"""Changes of a map on the shard that has the buckets: first both maps hold, then the new one."""

from sqlalchemy import Connection, and_, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from datapatterns.sharding.maps.applying import PendingChange
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.functions import library_function


def prepare(conn: Connection, pending: PendingChange, *, schema: str) -> bool:
    """Let the shard accept the map with the change as well as that without it.

    Return whether it could: False if the shard does not own what the change is about.
    """
    held, change = sharding_tables(schema).bucket, pending.change
    for bucket in (change.losing, None if change.makes_bucket else change.gaining):
        if bucket is None:
            continue
        state = conn.scalar(
            select(held.c.state)
            .where(held.c.group_id == pending.group_id, held.c.bucket == bucket)
            .with_for_update(read=True)
        )
        if state != "owned":
            return False
    if change.makes_bucket:
        losing = and_(held.c.group_id == pending.group_id, held.c.bucket == change.losing)
        conn.execute(
            upsert(held)
            .from_select(
                ["group_id", "bucket", "state", "epoch", "settled"],
                select(
                    held.c.group_id,
                    literal(change.gaining),
                    literal("owned"),
                    literal(1),
                    literal(False),
                    # Who slept since the change was settled must not make the bucket again: it
                    # may have moved on by now.
                ).where(losing, held.c.generation < pending.generation),
            )
            .on_conflict_do_nothing()
        )
    elif change.ends_bucket:
        conn.execute(
            update(held)
            .where(held.c.group_id == pending.group_id, held.c.bucket == change.losing)
            .values(settled=False)
        )
    return True


def settle(conn: Connection, pending: PendingChange, *, schema: str) -> bool:
    """Refuse from now on who comes with the map before.

    The losing bucket's fence proves that nobody is under way with it: whoever holds it may have
    read or locked rows that would be elsewhere once their new bucket has moved on.
    """
    held, change = sharding_tables(schema).bucket, pending.change
    if change.losing is None:
        return True
    fence = library_function(schema, "fence_class", pending.group_id)
    conn.execute(select(func.pg_advisory_xact_lock(fence, change.losing))).close()
    of_losing = and_(held.c.group_id == pending.group_id, held.c.bucket == change.losing)
    if change.ends_bucket:
        conn.execute(
            update(held)
            .where(of_losing, held.c.state == "owned", ~held.c.settled)
            .values(state="cleaned", settled=True)
        )
        return True
    raised = conn.scalar(
        update(held)
        .where(of_losing, held.c.state == "owned", held.c.generation < pending.generation)
        .values(generation=pending.generation)
        .returning(held.c.bucket)
    )
    if raised is not None and change.makes_bucket:
        conn.execute(
            update(held)
            .where(held.c.group_id == pending.group_id, held.c.bucket == change.gaining)
            .values(settled=True)
        )
    return True
