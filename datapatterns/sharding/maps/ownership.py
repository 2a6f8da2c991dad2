"""A shard answers only for what it owns; these are the questions."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from psycopg import Error as DriverError
from psycopg import OperationalError
from sqlalchemy import ARRAY, Boolean, ColumnElement, Connection, Integer, Text, cast, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.errors import (
    IsolationLevelError,
    ShardBusyError,
    ShardUnavailableError,
    StaleShardMapError,
)
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import DEFAULT_SCHEMA

NOT_OWNED = "SD001"
"""The SQLSTATE of a shard that does not own what a statement or a transaction is about."""


def owns_buckets(
    shard_map: ShardMap, buckets: Collection[int], *, schema: str = DEFAULT_SCHEMA
) -> ColumnElement[bool]:
    """Return a condition that fails the statement unless its snapshot shows the buckets as owned.

    It is evaluated once, before any row is read.
    """
    wanted = tuple(sorted(buckets))
    return _owned(schema, shard_map.group_id, wanted, tuple(shard_map.generations_of(wanted)))


# Each read has one, and there are few that differ.
@lru_cache(maxsize=4_096)
def _owned(
    schema: str, group_id: int, buckets: tuple[int, ...], generations: tuple[int, ...]
) -> ColumnElement[bool]:
    lists = (cast(list(each), ARRAY(Integer)) for each in (buckets, generations))
    return library_function(schema, "assert_owned", group_id, *lists, returns=Boolean())


def agrees_with_map(
    shard_map: ShardMap, shard_id: str, *, schema: str = DEFAULT_SCHEMA
) -> ColumnElement[bool]:
    """Return a condition that fails the statement unless the whole shard agrees with the map."""
    agreement = _agreement(shard_map, shard_id)
    return library_function(schema, "assert_map", *agreement, returns=Boolean())


def claim_buckets(
    conn: Connection,
    shard_map: ShardMap,
    buckets: Collection[int],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> None:
    """Keep buckets on this shard until the caller's transaction ends.

    Raises:
        IsolationLevelError: The connection commits each statement by itself.
    """
    refuse_autocommit(conn)
    conn.execute(
        select(library_function(schema, "claim_buckets", *_known(shard_map, buckets)))
    ).close()


def _known(shard_map: ShardMap, buckets: Collection[int]) -> tuple[object, object, object]:
    """Name buckets as the map knows them: one that has lost keys since is another."""
    wanted = sorted(buckets)
    generations = shard_map.generations_of(wanted)
    return (
        shard_map.group_id,
        cast(wanted, ARRAY(Integer)),
        cast(generations, ARRAY(Integer)),
    )


def claim_shard(
    conn: Connection, shard_map: ShardMap, shard_id: str, *, schema: str = DEFAULT_SCHEMA
) -> None:
    """Keep all buckets of a group on this shard until the caller's transaction ends.

    Raises:
        IsolationLevelError: The connection commits each statement by itself.
    """
    refuse_autocommit(conn)
    agreement = _agreement(shard_map, shard_id)
    conn.execute(select(library_function(schema, "claim_shard", *agreement))).close()


def _agreement(shard_map: ShardMap, shard_id: str) -> tuple[object, object, object]:
    """Name what the shard owns, and what it may have rows of that are another's."""
    return (
        shard_map.group_id,
        cast(shard_map.digest(shard_id), Text),
        cast(shard_map.elsewhere(shard_id), ARRAY(Integer)),
    )


def refuse_autocommit(conn: Connection) -> None:
    """Refuse a connection on which a claim would end with its own statement."""
    driver_connection: Any = conn.connection.dbapi_connection
    if driver_connection.autocommit:
        raise IsolationLevelError(found="autocommit", needed="read committed or stricter")


@contextmanager
def shard_errors(shard_id: str) -> Iterator[None]:
    """Turn what a shard says about ownership, or its silence, into errors that name it.

    Raises:
        ShardBusyError: All connections that this process may have are in use.
        ShardUnavailableError: It cannot be reached, or the connection broke.
        StaleShardMapError: It does not own what the map says.
    """
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == NOT_OWNED:
            raise StaleShardMapError(shard_id) from error
        # A connection that was never made has no SQLSTATE and is not "invalidated" either.
        if error.connection_invalidated or _is_connection_failure(error.orig):
            raise ShardUnavailableError(shard_id) from error
        raise
    except PoolTimeoutError as error:
        raise ShardBusyError(shard_id) from error
    except DriverError as error:
        if error.sqlstate == NOT_OWNED:
            raise StaleShardMapError(shard_id) from error
        if _is_connection_failure(error):
            raise ShardUnavailableError(shard_id) from error
        raise


def _is_connection_failure(error: BaseException | None) -> bool:
    # Class 08: connection exception; 57P: the server is shutting down or starting up.
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return isinstance(error, OperationalError)
    return str(sqlstate).startswith(("08", "57P"))
