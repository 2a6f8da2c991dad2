"""Drop the triggers that refuse late writers, when there can be none any more."""

from collections.abc import Sequence

from psycopg import sql
from sqlalchemy import and_, delete, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MoveBlockedError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.moving.capturing import drop_statements
from datapatterns.sharding.moving.holding import is_blocked
from datapatterns.sharding.moving.moved_table import describe_tables
from datapatterns.sharding.moving.settings import MoveAccess
from datapatterns.sharding.moving.tombstones import tombstones
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.composing import execute
from datapatterns.transactions import fresh_reads, resuming

_BRIEFLY = sql.SQL("SET LOCAL lock_timeout = '2s'")


def forget(
    access: MoveAccess, group: EntityGroup, shard: str, *, dry_run: bool = False
) -> Sequence[int]:
    """Drop what buckets that have left ``shard`` have left there; return those buckets.

    Buckets whose move is not done are left alone.

    Raises:
        MoveBlockedError: A transaction holds one of the tables.
        ShardUnavailableError: The shard does not answer.
    """
    shard_map = access.newest_map(group)
    held = sharding_tables(access.schema).bucket
    try:
        with (
            shard_errors(shard),
            fresh_reads(access.engines[shard]) as conn,
            resuming(conn, f"forgetting old buckets of shard {shard}"),
        ):
            execute(conn, _BRIEFLY)
            declared = access.tables_of(group)
            tables = describe_tables(conn, declared, shard_map, 0, schema=access.schema)
            found = tombstones(conn, shard_map.group_id, tables)
            # Held, so that none of them comes back meanwhile.
            gone = conn.scalars(
                select(held.c.bucket)
                .where(
                    and_(
                        held.c.group_id == shard_map.group_id,
                        held.c.bucket.in_([*found]),
                        held.c.state == "cleaned",
                    )
                )
                .with_for_update()
            ).all()
            if dry_run:
                return sorted(gone)
            for bucket in sorted(gone):
                for statement in drop_statements(shard_map.group_id, bucket, tables):
                    execute(conn, statement)
            dirty = sharding_tables(access.schema).dirty_key
            conn.execute(
                delete(dirty).where(
                    dirty.c.group_id == shard_map.group_id, dirty.c.bucket.in_([*gone])
                )
            )
    except DBAPIError as error:
        if not is_blocked(error):
            raise
        raise MoveBlockedError(shard, "the tables of the group") from error
    return sorted(gone)
