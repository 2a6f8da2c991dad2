"""Who changes the tables of a shard, and who needs them to stay as they are meanwhile.

A migration of a shard holds a lock of its session alone; a move of a bucket holds the same lock
shared, on both of its shards, from capturing to the hand-over. So tables never change under a copy
that is being made of them.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import (
    BigInteger,
    Connection,
    TextClause,
    bindparam,
    func,
    or_,
    select,
    text,
)

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import MigrationBlockedError
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_POLL_SECONDS = 0.05

_HOLDERS = text(
    "SELECT l.pid, l.mode = 'ShareLock' AS shared, a.application_name"
    " FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND l.classid::bigint = (:key >> 32) & x'ffffffff'::bigint"
    " AND l.objid::bigint = :key & x'ffffffff'::bigint"
    " AND l.pid <> pg_backend_pid() ORDER BY l.pid LIMIT 1"
)


def migration_key(schema: str) -> int:
    """Return the key of the lock on the tables of a shard; one for each schema of ours."""
    return _key(f"datapatterns: the application's tables beside {schema}")


def run_key(schema: str) -> int:
    """Return the key of the lock, in the control database, on migrating all shards."""
    return _key(f"datapatterns: migrating the shards of {schema}")


def keep_tables(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> None:
    """Let no migration change this shard's tables while this session lasts; for moves.

    It outlives transactions: `release_tables` or the end of the session lets go. Take it on both
    shards before capturing, and again after a crash, before going on. No pooler may give the
    session to others in between.

    Raises:
        MigrationBlockedError: A migration is under way.
    """
    key = migration_key(schema)
    if not conn.scalar(select(func.pg_try_advisory_lock_shared(key))):
        raise MigrationBlockedError(_holder(conn, key), waited_seconds=0)


def release_tables(conn: Connection, *, schema: str = DEFAULT_SCHEMA) -> None:
    """Let migrations change this shard's tables again."""
    conn.execute(select(func.pg_advisory_unlock_shared(migration_key(schema)))).close()


@contextmanager
def locked_alone(
    conn: Connection, key: int, *, wait_seconds: float, clock: Clock = SYSTEM_CLOCK
) -> Iterator[None]:
    """Hold a lock alone while the block lasts; ``conn`` must be in autocommit mode.

    It is asked for again and again instead of waited for: a statement that waits has a snapshot,
    and CREATE INDEX CONCURRENTLY in the session that holds the lock would wait for that one, a
    circle that no server sees.

    Raises:
        MigrationBlockedError: Somebody held it for longer than ``wait_seconds``.
    """
    deadline = clock.monotonic() + wait_seconds
    while not conn.scalar(select(func.pg_try_advisory_lock(key))):
        if clock.monotonic() >= deadline:
            raise MigrationBlockedError(_holder(conn, key), waited_seconds=wait_seconds)
        clock.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        # A session that broke has let go already.
        if not conn.closed and not conn.invalidated:
            conn.execute(select(func.pg_advisory_unlock(key))).close()


def moves_under_way(control: Connection, shard: str, *, schema: str = DEFAULT_SCHEMA) -> list[int]:
    """Return the buckets that are on their way from or to a shard, also if their worker has died.

    A dead worker's session holds no lock, but whoever resumes its move goes on with its copy.
    """
    moves = sharding_tables(schema).bucket_move
    return list(
        control.scalars(
            select(moves.c.bucket)
            .where(
                or_(moves.c.source == shard, moves.c.target == shard),
                moves.c.state.in_(("capturing", "copying", "catching_up", "cut")),
            )
            .order_by(moves.c.bucket)
        )
    )


def _holder(conn: Connection, key: int) -> str:
    found = conn.execute(_asking(key)).one_or_none()
    if found is None:
        return "another migration was under way"
    what = "a bucket is being moved" if found.shared else "another migration is under way"
    name = f" ({found.application_name})" if found.application_name else ""
    return f"{what} by session {found.pid}{name}"


def _asking(key: int) -> TextClause:
    return _HOLDERS.bindparams(bindparam("key", key, BigInteger))


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
