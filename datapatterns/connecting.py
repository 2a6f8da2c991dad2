"""Engines and clients with time-outs, so that a server that is away is an error soon."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from sqlalchemy import URL, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    DataPatternsError,
    MissingRightsError,
    ServerTooOldError,
    ServerUnavailableError,
    SettingsError,
)
from datapatterns.sql.discretion import discreet
from datapatterns.sql.poolers import prepare_nothing_behind_poolers
from datapatterns.sql.server import check_server, library_errors, named_error
from datapatterns.transactions import watch_commits
from datapatterns.urls import shown_database, without_secret_options

OLDEST_REDIS: Final = 7


@dataclass(frozen=True, slots=True)
class ServerReport:
    """A server that answered.

    Attributes:
        name: ``main``, the name of a shard, or ``redis``.
        address: Where it is, without its password.
        version: What it says it is, such as ``PostgreSQL 18.1``.
    """

    name: str
    address: str
    version: str


def open_engine(
    url: URL, *, connect_timeout_seconds: float = 5.0, for_migrating: bool = False
) -> Engine:
    """Return an engine for ``url``; what the URL says itself wins over the defaults here.

    A COMMIT whose answer is lost raises `OutcomeUnknownError`, whoever makes it.

    Args:
        url: A URL for psycopg 3.
        connect_timeout_seconds: How long to wait for each host of the URL.
        for_migrating: Keep no connection, prepare no statement (neither survives PgBouncer in
            transaction mode), and see what others commit while this waits for its turn,
            whatever the default of the database is.
    """
    arguments = connect_arguments(url, connect_timeout_seconds)
    url, _ = without_secret_options(url)
    if for_migrating:
        arguments["prepare_threshold"] = None
        return discreet(
            create_engine(
                url,
                connect_args=arguments,
                poolclass=NullPool,
                isolation_level="READ COMMITTED",
                hide_parameters=True,
            )
        )
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=True, hide_parameters=True)
    return prepare_nothing_behind_poolers(watch_commits(discreet(engine)))


def database_version(engine: Engine, server: str) -> str:
    """Return the version of a PostgreSQL server, such as ``18.1``.

    Args:
        engine: Its engine.
        server: How to name it, without its password.

    Raises:
        ServerTooOldError: It is older than PostgreSQL 14.
        ServerUnavailableError: It did not answer in time.
    """
    with library_errors(server), engine.connect() as conn:
        check_server(conn)
        return ".".join(str(part) for part in conn.dialect.server_version_info or ())


def connect_arguments(url: URL, connect_timeout_seconds: float) -> dict[str, object]:
    """Return what the driver is told beyond what ``url`` says."""
    defaults: dict[str, object] = {
        "connect_timeout": max(1, math.ceil(connect_timeout_seconds)),
        "application_name": "datapatterns",
    }
    _, secrets = without_secret_options(url)
    return {name: value for name, value in defaults.items() if name not in url.query} | secrets


def open_redis(url: str, *, timeout_seconds: float) -> Redis:
    """Return a client for ``url``; it connects when it is first used.

    It does not send a command again whose reply was lost, as ``Redis(host=...)`` does: an INCR
    would count twice.

    Raises:
        SettingsError: The URL asks for an option that there isn't.
    """
    try:
        client = Redis.from_url(
            url,
            socket_connect_timeout=timeout_seconds,
            socket_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # does not connect
    except (TypeError, ValueError):
        raise SettingsError(
            "Redis URL", "an option after the ? is unknown or has a wrong value; mend it"
        ) from None
    return client


@contextmanager
def redis_errors(server: str) -> Iterator[None]:
    """Turn what the Redis client raises into errors of this library.

    Args:
        server: How to name the server, without its password.
    """
    try:
        yield
    except RedisError as error:
        named = _named_redis_error(error, server)
        if named is None:
            raise
        raise named from error


def library_error(error: BaseException) -> DataPatternsError | None:
    """Return what an error of a driver is called in this library, None if it has no name.

    For the edge of a program, where it is no longer known which server was asked.
    """
    if isinstance(error, DBAPIError):
        return named_error(error.orig, "the database")
    return _named_redis_error(error, "Redis")


def _named_redis_error(error: BaseException, server: str) -> DataPatternsError | None:
    if isinstance(error, AuthenticationError | NoPermissionError):
        return MissingRightsError(str(error))
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return ServerUnavailableError(server, str(error))
    if isinstance(error, ResponseError) and str(error).startswith("DB index is out of range"):
        return SettingsError("Redis URL", f"{server} has no database of this number; use 0")
    return None


def asked_database(name: str, engine: Engine) -> ServerReport:
    """Return what a database says it is, or raise why it says nothing."""
    address = shown_database(engine.url)
    return ServerReport(name, address, f"PostgreSQL {database_version(engine, address)}")


def asked_redis(client: Redis, address: str) -> ServerReport:
    """Return what Redis says it is, or raise why it says nothing.

    Raises:
        ServerTooOldError: It is older than 7.
    """
    with redis_errors(address):
        answer = client.info("server")
    version = str(answer["redis_version"])
    if int(version.partition(".")[0]) < OLDEST_REDIS:
        raise ServerTooOldError("Redis", found=version, needed=OLDEST_REDIS)
    product = "Valkey" if answer.get("server_name") == "valkey" else "Redis"
    return ServerReport("redis", address, f"{product} {answer.get('valkey_version', version)}")
