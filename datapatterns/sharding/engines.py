"""Engines that talk to the right server, in the same way as to all others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from psycopg import Connection as DriverConnection
from psycopg import Error as DriverError
from psycopg import sql
from psycopg.errors import InvalidSchemaName, UndefinedColumn, UndefinedFunction, UndefinedTable
from sqlalchemy import URL, Engine, ExceptionContext, QueuePool, create_engine, event
from sqlalchemy.exc import ProgrammingError

from datapatterns.errors import MigrationNeededError, SettingsError, WrongShardError
from datapatterns.sharding.fan_out import give_turns
from datapatterns.sharding.reaching.first_query import cursor_factory
from datapatterns.sql.discretion import discreet
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.sql.poolers import (
    note_pooler,
    prepare_nothing_behind_poolers,
    settle_each_transaction,
    told_pid,
)
from datapatterns.transactions import watch_commits
from datapatterns.urls import postgres_url, without_secret_options

_REVISION = "dp0040"
_MISSING = (UndefinedTable, UndefinedColumn, UndefinedFunction, InvalidSchemaName)

SESSION_SETTINGS = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""Set alike on every shard: two time zones would give one query two answers."""


FAILED = "datapatterns_shard"
"""The attribute of a driver's error that names the shard on which it happened."""

POOL_SECONDS = 5.0
"""How long to wait for a connection while all that a shard may have are in use."""

_BOUNDS = {
    "connect_timeout": 5,
    # A machine that is gone, or a network that drops everything, closes no connection.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}


def shard_engine(
    shard_id: str,
    url: str | URL,
    *,
    schema: str = DEFAULT_SCHEMA,
    engine_options: Mapping[str, Any] | None = None,
    check: Callable[[str, DriverConnection[Any]], None] | None = None,
    asynchronous: bool = False,
) -> Engine:
    """Return an engine whose connections refuse to be those of another shard.

    Args:
        shard_id: Which shard it is.
        url: Its address.
        schema: Where the library's tables live.
        engine_options: What `create_engine` takes.
        check: Is asked of each new connection whether the shard is good enough.
        asynchronous: Whether it is for greenlets of an event loop, beneath an `AsyncEngine`.

    Raises (when a connection is opened):
        MigrationNeededError: The server does not have the library's tables.
        SettingsError: The server's encoding is not UTF-8, so text would hash otherwise.
        WrongShardError: The server says that it is another shard, or none.
    """
    url = driver_url(url)
    options = _with_bounds(url, engine_options or {})
    arguments = options["connect_args"]
    options["connect_args"] = cursor_factory(asynchronous=asynchronous) | arguments
    engine = _made(url, asynchronous=asynchronous, **options)

    @event.listens_for(engine, "connect")
    def settle(connection: DriverConnection[Any], record: object) -> None:
        try:
            if _introduce(connection, shard_id, schema):
                note_pooler(connection, record)
            if check is not None:
                check(shard_id, connection)
        except BaseException:
            connection.close()  # the pool does not know it yet
            raise

    @event.listens_for(engine, "handle_error")
    def blame(context: ExceptionContext) -> None:
        context.original_exception.__dict__.setdefault(FAILED, shard_id)

    watched = settle_each_transaction(watch_commits(engine), SESSION_SETTINGS)
    return watched if asynchronous else give_turns(watched)


def _with_bounds(url: URL, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` so that nobody waits for ever for a server that has vanished."""
    found = dict(options)
    bounds = {name: value for name, value in _BOUNDS.items() if name not in url.query}
    found["connect_args"] = bounds | found.get("connect_args", {})
    if "poolclass" not in found:
        found.setdefault("pool_timeout", POOL_SECONDS)
    return found


def has_idle_connection(engine: Engine) -> bool:
    """Return whether a connection is at hand that no server is asked about; others may take it."""
    pool = engine.pool
    looks_first = pool._pre_ping or pool._recycle > -1  # noqa: SLF001 -- there is no public name
    return isinstance(pool, QueuePool) and not looks_first and pool.checkedin() > 0


@contextmanager
def tables_needed(schema: str) -> Iterator[None]:
    """Say what to do where the library's tables are missing.

    Raises:
        MigrationNeededError: They do not exist, or are too old.
    """
    try:
        yield
    except (ProgrammingError, DriverError) as error:
        driver_error = error.orig if isinstance(error, ProgrammingError) else error
        if isinstance(driver_error, _MISSING):
            raise MigrationNeededError(schema, found=None, needed=_REVISION) from error
        raise


def driver_engine(url: URL, *, asynchronous: bool = False, **options: Any) -> Engine:  # noqa: ANN401 -- what create_engine takes
    """Return an engine that shows no secret of ``url`` and no row."""
    return prepare_nothing_behind_poolers(_made(url, asynchronous=asynchronous, **options))


def _made(url: URL, *, asynchronous: bool, **options: Any) -> Engine:  # noqa: ANN401 -- what create_engine takes
    shown, secrets = without_secret_options(url)
    arguments = {**secrets, **options.pop("connect_args", {})}
    options = {"hide_parameters": True, **options}
    if asynchronous:
        from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 -- needs an extra

        made = create_async_engine(shown, connect_args=arguments, **options).sync_engine
    else:
        made = create_engine(shown, connect_args=arguments, **options)
    return discreet(made)


def driver_url(url: str | URL) -> URL:
    """Return ``url`` with the driver that this library speaks to.

    Raises:
        SettingsError: It is no URL of a PostgreSQL database.
    """
    return postgres_url(url)


def _introduce(connection: DriverConnection[Any], shard_id: str, schema: str) -> bool:
    """Make sure that it is the right shard; return whether a pooler stands before it."""
    # A session of a pooler is somebody else's in the next transaction: nothing is set for it.
    question = sql.SQL(
        "SELECT (SELECT shard_id FROM {}), current_setting('server_encoding'),"
        " count(set_config(name, value, pg_backend_pid() <> %s)), pg_backend_pid() <> %s"
        " FROM unnest(%s::text[], %s::text[]) AS setting (name, value)"
    ).format(sql.Identifier(schema, "this_shard"))
    names, values = list(SESSION_SETTINGS), list(SESSION_SETTINGS.values())
    pid = told_pid(connection)
    with tables_needed(schema):
        row = connection.execute(question, (pid, pid, names, values)).fetchone()
    # Settings of a transaction that is rolled back are forgotten.
    connection.commit()
    assert row is not None
    found, encoding, _, pooled = row
    if found != shard_id:
        raise WrongShardError(expected=shard_id, found=found)
    if encoding != "UTF8":
        raise SettingsError(f"shard {shard_id!r}", f"its encoding is {encoding}, not UTF8")
    return bool(pooled)
