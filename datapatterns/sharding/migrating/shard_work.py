"""Migrate one shard, in this process or in one of its own."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, NullPool, func, inspect, select, text
from sqlalchemy.exc import DBAPIError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import (
    AlembicEnvironmentError,
    CommitUnansweredError,
    DataPatternsError,
    MigrationBlockedError,
    ShardUnavailableError,
    WrongShardError,
)
from datapatterns.failpoints import failpoint
from datapatterns.sharding.engines import driver_engine, driver_url
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.migrating.catalogs import invalid_indexes, read_catalog
from datapatterns.sharding.migrating.environment import AlembicEnvironment
from datapatterns.sharding.migrating.lock import locked_alone, migration_key
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.migrating import downgrade, upgrade
from datapatterns.sql.migration_status import migration_status
from datapatterns.transactions import reading, resuming

State = Literal["pending", "running", "done", "failed", "blocked", "unavailable"]

_LOCKED_OUT: Final = ("55P03", "40P01")
"""SQLSTATEs of a lock that was not had in time, and of a deadlock."""

_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOrder:
    """What is to be done on one shard.

    Attributes:
        shard: Its name.
        url: Its address, with what gives access to it.
        schema: Where the library's tables live.
        library: The library's revision to go to; None to leave its tables as they are.
        revision: The application's revision to go to; None to leave its tables as they are.
        environment: Where the application's revisions are.
        down: Whether to go back to them.
        lock_seconds: How long one statement waits for a lock, which makes others wait behind it.
        patience_seconds: For how long to try again, with pauses, what had to wait.
        turn_seconds: How long to wait for a migration that somebody else runs on this shard.
    """

    shard: str
    url: str = field(repr=False)
    schema: str = DEFAULT_SCHEMA
    library: str | None = None
    revision: str | None = None
    environment: AlembicEnvironment | None = None
    down: bool = False
    lock_seconds: float = 2.0
    patience_seconds: float = 60.0
    turn_seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOutcome:
    """What became of it.

    Attributes:
        shard: Its name.
        state: ``done``; ``failed``; ``blocked`` by others who hold what it needs; ``unavailable``.
        heads: At which of the application's revisions it is.
        library: At which of the library's.
        fingerprint: Of its tables; None unless it is done.
        error: What went wrong.
    """

    shard: str
    state: State
    heads: tuple[str, ...] = ()
    library: str | None = None
    fingerprint: str | None = None
    error: str | None = None


def migrate_shard(order: ShardOrder, *, clock: Clock = SYSTEM_CLOCK) -> ShardOutcome:
    """Do what ``order`` says; what goes wrong is in the result.

    Each of the application's revisions commits as its environment has it, the library's together.
    Doing the same again goes on from there.
    """
    engine = driver_engine(
        driver_url(order.url), poolclass=NullPool, connect_args={"prepare_threshold": None}
    )
    try:
        with shard_errors(order.shard), engine.connect() as conn:
            # Between statements it must hold no snapshot: CREATE INDEX CONCURRENTLY waits for all.
            conn.execution_options(isolation_level="AUTOCOMMIT")
            _settle(conn, "0")
            _check_identity(conn, order)
            key = migration_key(order.schema)
            with locked_alone(conn, key, wait_seconds=order.turn_seconds, clock=clock):
                failpoint("shard-migration.locked")
                return _migrated(engine, conn, order, clock)
    except Exception as error:  # noqa: BLE001 -- the edge of what runs on one shard
        return ShardOutcome(shard=order.shard, state=_state_after(error), error=_said(error))
    finally:
        engine.dispose()


def _migrated(engine: Engine, conn: Connection, order: ShardOrder, clock: Clock) -> ShardOutcome:
    if order.library is not None:
        _repeating(order, clock, lambda: _migrate_library(engine, order))
    heads: tuple[str, ...] = ()
    if order.environment is not None:
        if order.revision is not None:
            _repeating(order, clock, lambda: _migrate_application(conn, order))
            failpoint("shard-migration.migrated")
        heads = tuple(sorted(order.environment.heads_in(conn)))
    if left := invalid_indexes(conn, schema=order.schema):
        raise AlembicEnvironmentError(
            f"index {left[0]} was begun CONCURRENTLY and is not valid; drop it:"
            f" DROP INDEX CONCURRENTLY {left[0]}"
        )
    with engine.connect() as reader, reading(reader):
        return ShardOutcome(
            shard=order.shard,
            state="done",
            heads=heads,
            library=migration_status(reader, schema=order.schema).revision,
            fingerprint=read_catalog(reader, schema=order.schema).fingerprint,
        )


def _migrate_library(engine: Engine, order: ShardOrder) -> None:
    step = downgrade if order.down else upgrade
    assert order.library is not None
    with engine.connect() as conn:
        conn.execution_options(isolation_level="READ COMMITTED")
        with resuming(conn, f"a migration of shard {order.shard}"):
            step(conn, order.library, schema=order.schema, wait_seconds=order.turn_seconds)


def _migrate_application(conn: Connection, order: ShardOrder) -> None:
    assert order.environment is not None
    assert order.revision is not None
    url = _with_settings(driver_url(order.url), order.lock_seconds)
    engine = driver_engine(url, poolclass=NullPool, connect_args={"prepare_threshold": None})
    key = random.getrandbits(62)
    conn.execute(select(func.pg_advisory_lock(key))).close()
    pid = conn.scalar(select(func.pg_backend_pid()))

    def check(context: MigrationContext) -> None:
        """Refuse an environment that has gone to another database."""
        given = context.connection
        assert given is not None
        if not given.scalar(_HELD, {"pid": pid, "key": key}):
            raise AlembicEnvironmentError(
                f"env.py migrates another database than that of shard {order.shard!r}; use the"
                ' connection in context.config.attributes["connection"], or the sqlalchemy.url'
                " of the configuration"
            )

    try:
        with engine.connect() as given:
            order.environment.run(given, url, revision=order.revision, down=order.down, check=check)
    finally:
        engine.dispose()
        if not conn.invalidated:
            conn.execute(select(func.pg_advisory_unlock(key))).close()
    _check_reached(conn, order)


def _check_reached(conn: Connection, order: ShardOrder) -> None:
    assert order.environment is not None
    assert order.revision is not None
    found = order.environment.heads_in(conn)
    left = order.environment.revisions().steps(found, order.revision, down=order.down)
    if left:
        raise AlembicEnvironmentError(
            f"env.py has ended, and {left[0].revision} is not committed; let it use:"
            " with context.begin_transaction()"
        )


def _repeating(order: ShardOrder, clock: Clock, work: Callable[[], None]) -> None:
    """Do ``work``, again after a pause while it cannot have its locks."""
    deadline = clock.monotonic() + order.patience_seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return work()
        except CommitUnansweredError:
            if clock.monotonic() >= deadline:
                raise
        except (DBAPIError, MigrationBlockedError) as error:
            if not _is_locked_out(error) or clock.monotonic() >= deadline:
                raise
        # Many shards, or many hosts, must not come back at the same moment.
        clock.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- no secret
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _check_identity(conn: Connection, order: ShardOrder) -> None:
    """Refuse another shard; one that has not been told yet who it is may be migrated."""
    table = sharding_tables(order.schema).this_shard
    if not inspect(conn).has_table(table.name, schema=order.schema):
        return
    found = conn.scalar(select(table.c.shard_id))
    if found is not None and found != order.shard:
        raise WrongShardError(expected=order.shard, found=found)


def _settle(conn: Connection, lock_timeout: str) -> None:
    # A role's limits are meant for its everyday queries; the lock must not be lost for idleness.
    for name, value in (
        ("lock_timeout", lock_timeout),
        ("statement_timeout", "0"),
        ("idle_session_timeout", "0"),
    ):
        conn.execute(select(func.set_config(name, value, False))).close()


def _with_settings(url: URL, lock_seconds: float) -> URL:
    """Return ``url`` with limits that hold in whatever connection an environment opens."""
    found = url.query.get("options", "")
    options = found if isinstance(found, str) else " ".join(found)
    milliseconds = max(round(lock_seconds * 1000), 1)
    more = f"-c lock_timeout={milliseconds} -c statement_timeout=0"
    return url.update_query_dict({"options": f"{options} {more}".strip()})


def _is_locked_out(error: Exception) -> bool:
    if isinstance(error, MigrationBlockedError):
        return True
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", getattr(cause, "pgcode", None)) in _LOCKED_OUT


def _state_after(error: Exception) -> State:
    if _is_locked_out(error):
        return "blocked"
    return "unavailable" if isinstance(error, ShardUnavailableError) else "failed"


def _said(error: Exception) -> str:
    """Return the first line; further ones may quote rows, and what an application put into SQL."""
    original = getattr(error, "orig", None) or error
    first = next(iter(str(original).strip().splitlines()), "")
    if isinstance(error, DataPatternsError | DBAPIError | CommandError) and first:
        return first
    return f"{type(error).__name__}: {first}"


_HELD = text(
    "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND pid = :pid"
    " AND classid::bigint = (CAST(:key AS bigint) >> 32) & x'ffffffff'::bigint"
    " AND objid::bigint = CAST(:key AS bigint) & x'ffffffff'::bigint)"
)
