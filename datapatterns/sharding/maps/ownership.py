"""A shard answers only for what it owns; these are the questions."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from psycopg import Error as DriverError
from psycopg import OperationalError
from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Text,
    bindparam,
    cast,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.errors import (
    IsolationLevelError,
    ShardBusyError,
    ShardUnavailableError,
    StaleShardMapError,
)
from datapatterns.sharding.engines import FAILED
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import DEFAULT_SCHEMA

NOT_OWNED = "SD001"
"""The SQLSTATE of a shard that does not own what a statement or a transaction is about."""

_AGREEMENT = ("dp_group_id", "dp_digest")


def owns_buckets(
    shard_map: ShardMap, buckets: Collection[int], *, schema: str = DEFAULT_SCHEMA
) -> ColumnElement[bool]:
    """Return a condition that fails the statement unless its snapshot shows the buckets as owned.

    It is evaluated once, before any row is read.
    """
    wanted = tuple(sorted(buckets))
    generations = tuple(shard_map.generations_of(wanted))
    if len(wanted) == 1:
        return _owned_one(schema, shard_map.group_id, wanted[0], generations[0])
    return _owned(schema, shard_map.group_id, wanted, generations)


# Each read has one, and there are few that differ.
@lru_cache(maxsize=4_096)
def _owned_one(schema: str, group_id: int, bucket: int, generation: int) -> ColumnElement[bool]:
    return owns_one(schema, *(literal(each, Integer) for each in (group_id, bucket, generation)))


def owns_one(
    schema: str,
    group_id: ColumnElement[int],
    bucket: ColumnElement[int],
    generation: ColumnElement[int],
) -> ColumnElement[bool]:
    """Return the condition of `owns_buckets` for one bucket.

    Without a function, unless it fails: one that runs a query of its own takes longer than the
    statement. Both SELECTs name no column of the statement's, so the server evaluates them once and
    first, and the plan does not depend on what they say.
    """
    held = sharding_tables(schema).bucket.alias("held")
    shown: Select[Any] = (
        select(literal_column("1"))
        .select_from(held)
        .where(
            held.c.group_id == group_id,
            held.c.bucket == bucket,
            held.c.state == literal_column("'owned'"),
            held.c.generation <= generation,
        )
    )
    refused = library_function(schema, "refuse_bucket", group_id, bucket, returns=Boolean())
    return select(refused).where(~shown.exists()).scalar_subquery().is_(None)


@lru_cache(maxsize=4_096)
def _owned(
    schema: str, group_id: int, buckets: tuple[int, ...], generations: tuple[int, ...]
) -> ColumnElement[bool]:
    lists = (cast(list(each), ARRAY(Integer)) for each in (buckets, generations))
    return _asked_first(
        library_function(schema, "assert_owned", group_id, *lists, returns=Boolean())
    )


def _asked_first(agreed: ColumnElement[bool]) -> ColumnElement[bool]:
    # A subquery without columns costs a condition nothing, so the server sorts no other before it.
    return select(agreed).scalar_subquery()


def agrees_with_map(
    shard_map: ShardMap, shard_id: str, *, schema: str = DEFAULT_SCHEMA
) -> ColumnElement[bool]:
    """Return a condition that fails the statement unless the whole shard agrees with the map."""
    agreement = _agreement(shard_map, shard_id)
    return _asked_first(library_function(schema, "assert_map", *agreement, returns=Boolean()))


@lru_cache(maxsize=64)
def agrees_with_any_map(schema: str) -> ColumnElement[bool]:
    """Return the condition of `agrees_with_map`, made once, of maps in which nothing moves."""
    group_id, digest = _AGREEMENT
    agreement = (bindparam(group_id, type_=Integer), cast(bindparam(digest), Text))
    return _asked_first(library_function(schema, "assert_map", *agreement, returns=Boolean()))


def agreement_of(shard_map: ShardMap, shard_id: str) -> dict[str, Any]:
    """Return the values for `agrees_with_any_map`."""
    group_id, digest = _AGREEMENT
    return {group_id: shard_map.group_id, digest: shard_map.digest(shard_id)}


def claim_buckets(
    conn: Connection,
    shard_map: ShardMap,
    buckets: Collection[int],
    *,
    schema: str = DEFAULT_SCHEMA,
    after: tuple[ColumnElement[Any], ...] = (),
) -> None:
    """Keep buckets on this shard until the caller's transaction ends.

    Args:
        conn: A connection to the shard.
        shard_map: Where the buckets are.
        buckets: Which ones.
        schema: Where the library's tables live.
        after: What is to be evaluated first, in the same statement: one object for each purpose.

    Raises:
        IsolationLevelError: The connection commits each statement by itself.
    """
    refuse_autocommit(conn)
    wanted = sorted(buckets)
    generations = shard_map.generations_of(wanted)
    named: dict[str, Any] = {"group_id": shard_map.group_id}
    if len(wanted) == 1:
        named |= {"bucket": wanted[0], "generation": generations[0]}
    else:
        named |= {"buckets": wanted, "generations": generations}
    conn.execute(_claim(schema, after, one=len(wanted) == 1), named).close()


@lru_cache(maxsize=64)
def _claim(schema: str, after: tuple[ColumnElement[Any], ...], *, one: bool) -> Select[Any]:
    """Return the claim, made once: each bucket is named as the map knows it.

    One that has lost keys since is another, by its generation.
    """
    lists: list[ColumnElement[Any]]
    if one:  # the driver takes longer to write a list than the server needs to read one
        lists = [array([bindparam(name, type_=Integer)]) for name in ("bucket", "generation")]
    else:
        lists = [cast(bindparam(n), ARRAY(Integer)) for n in ("buckets", "generations")]
    group_id = bindparam("group_id", type_=Integer)
    # The server evaluates what is selected in order.
    return select(*after, library_function(schema, "claim_buckets", group_id, *lists))


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
    except (DBAPIError, DriverError, PoolTimeoutError) as error:
        if (found := shard_error(error, shard_id)) is not None:
            raise found from error
        raise


def failed_shard(error: DBAPIError) -> str | None:
    """Return on which shard an error happened; None if that was not on a connection to one."""
    found: str | None = getattr(error.orig, FAILED, None)
    return found


def shard_error(error: BaseException, shard_id: str) -> Exception | None:
    """Return what an error of a shard amounts to, as `shard_errors` raises it; None if itself."""
    if isinstance(error, PoolTimeoutError):
        return ShardBusyError(shard_id)
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(error, DBAPIError | DriverError):
        return None
    if getattr(cause, "sqlstate", None) == NOT_OWNED:
        return StaleShardMapError(shard_id)
    # A connection that was never made has no SQLSTATE and is not "invalidated" either.
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return ShardUnavailableError(shard_id) if lost or _is_connection_failure(cause) else None


def _is_connection_failure(error: BaseException | None) -> bool:
    # Class 08: connection exception; 57P: the server is shutting down or starting up.
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is None:
        return isinstance(error, OperationalError)
    return str(sqlstate).startswith(("08", "57P"))
