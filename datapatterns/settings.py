"""Where the servers are: from arguments, else the environment; what is secret is never shown.

=================  ============================================================================
setting            looked for in this order
=================  ============================================================================
``database_url``   argument, ``DATAPATTERNS_DATABASE_URL``, ``DATABASE_URL``
``redis_url``      argument, ``DATAPATTERNS_REDIS_URL``, ``REDIS_URL``
``shards``         argument, ``DATAPATTERNS_SHARDS`` (``name=url``, separated by spaces)
``schema``         argument, ``DATAPATTERNS_SCHEMA``, ``datapatterns``
=================  ============================================================================

A variable that is set to nothing counts as not set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from datapatterns.errors import SchemaNameError, SettingsError
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema

MAIN = "main"
"""What the database that is not a shard is called wherever databases are listed."""

HIGHEST_PORT = 65_535

_POSTGRES = {"postgres", "postgresql", "postgresql+psycopg"}
_REDIS = {"redis", "rediss", "unix"}
_REDIS_DATABASE = re.compile(r"/?[0-9]{0,9}")
_SHARD_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the servers are and where in them the library's tables live.

    Attributes:
        database_url: The database, for the driver that the library uses.
        redis_url: Redis or Valkey.
        shards: The shards by name, in the order in which they were given.
        schema: The schema of the library's tables.
    """

    database_url: URL | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    shards: Mapping[str, URL] = field(default_factory=dict, repr=False)
    schema: str = DEFAULT_SCHEMA


def settings_from(
    environ: Mapping[str, str],
    *,
    database_url: str | URL | None = None,
    redis_url: str | None = None,
    shards: Mapping[str, str | URL] | None = None,
    schema: str | None = None,
) -> Settings:
    """Return the settings that arguments and ``environ`` make together; arguments win.

    Raises:
        SettingsError: One of them cannot be used; the message names it, and no secret.
    """
    found_database = _first(environ, "DATAPATTERNS_DATABASE_URL", "DATABASE_URL")
    if database_url:
        found_database = ("database_url", database_url)
    found_redis = _first(environ, "DATAPATTERNS_REDIS_URL", "REDIS_URL")
    if redis_url:
        found_redis = ("redis_url", redis_url)
    found_shards: Mapping[str, str | URL] = (
        _listed_shards(environ.get("DATAPATTERNS_SHARDS", "")) if shards is None else shards
    )
    return Settings(
        database_url=postgres_url(found_database[1], found_database[0]) if found_database else None,
        redis_url=checked_redis_url(str(found_redis[1]), found_redis[0]) if found_redis else None,
        shards=_checked_shards(found_shards),
        schema=_schema(environ, schema),
    )


def postgres_url(url: str | URL, setting: str = "database URL") -> URL:
    """Return ``url`` for the driver that the library uses, psycopg 3.

    Raises:
        SettingsError: It is no URL of a PostgreSQL database; ``setting`` says which one.
    """
    try:
        parsed = make_url(url.strip() if isinstance(url, str) else url)
    except (ArgumentError, ValueError):
        # Not chained: what the parser says may quote a piece of the password.
        raise SettingsError(setting, _POSTGRES_ADVICE) from None
    if parsed.drivername not in _POSTGRES:
        raise SettingsError(setting, f"{parsed.drivername!r} is not for this; {_POSTGRES_ADVICE}")
    if isinstance(url, str) and _has_stray_at(url, parsed):
        # The rest of a password that holds an @: as a host it would be shown in messages.
        raise SettingsError(setting, _ENCODING_ADVICE)
    if parsed.port is not None and not 0 < parsed.port <= HIGHEST_PORT:
        # The number is not shown: where the host was forgotten, it is the password.
        raise SettingsError(setting, f"the port is none of 1 to {HIGHEST_PORT}; {_POSTGRES_ADVICE}")
    if "password" in parsed.query:  # where SQLAlchemy would show it in the repr of an engine
        last = parsed.normalized_query["password"][-1]
        parsed = parsed.difference_update_query(["password"]).set(password=last)
    return parsed.set(drivername="postgresql+psycopg")


def _has_stray_at(url: str, parsed: URL) -> bool:
    # The parser drops without a word what stands behind a host in brackets.
    dropped = url.partition(f"@[{parsed.host}]")[2]
    return "@" in f"{parsed.host}{parsed.database}{url.partition('?')[2]}{dropped}"


_ENCODING_ADVICE = (
    "an @ stands where none can; write special characters of user and password"
    " percent-encoded (@ is %40, / is %2F, ? is %3F)"
)
_POSTGRES_ADVICE = (
    "write postgresql://user:password@host:5432/database, with special characters of user and"
    " password percent-encoded (@ is %40, / is %2F, ? is %3F)"
)


def checked_redis_url(url: str, setting: str = "Redis URL") -> str:
    """Return ``url`` if it is one of a Redis or Valkey server.

    Raises:
        SettingsError: It is none; ``setting`` says which one.
    """
    advice = "write redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path/to/socket"
    try:
        parsed = urlsplit(url.strip())
        host, _ = parsed.hostname, parsed.port  # the port is only read, and checked, here
    except ValueError:
        raise SettingsError(setting, advice) from None
    if parsed.scheme not in _REDIS or not (host or parsed.scheme == "unix"):
        raise SettingsError(setting, advice)
    if url.count("@") > 1 or "@" in f"{parsed.path}{parsed.query}{parsed.fragment}":
        raise SettingsError(setting, _ENCODING_ADVICE)
    if parsed.scheme != "unix" and not _REDIS_DATABASE.fullmatch(parsed.path):
        # The client would take database 0 instead, and not say so.
        raise SettingsError(setting, "the database is a number; " + advice)
    return url.strip()


def shown_database(url: URL) -> str:
    """Return ``url`` as it may be printed: no password, and no options but the host."""
    host = [value for name, value in url.normalized_query.items() if name == "host"]
    shown = URL.create(
        "postgresql",
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query={"host": host[0]} if host else {},
    )
    return shown.render_as_string(hide_password=True).replace("%2F", "/")


def shown_redis(url: str) -> str:
    """Return ``url`` as it may be printed: no user, no password, no options."""
    parsed = urlsplit(url)
    host = parsed.netloc.rpartition("@")[2]
    return f"{parsed.scheme}://{host}{parsed.path}"


def _first(environ: Mapping[str, str], *names: str) -> tuple[str, str | URL] | None:
    return next(((name, environ[name]) for name in names if environ.get(name, "").strip()), None)


def _schema(environ: Mapping[str, str], schema: str | None) -> str:
    if schema is not None:
        return checked_schema(schema)
    name = environ.get("DATAPATTERNS_SCHEMA", "").strip() or DEFAULT_SCHEMA
    try:
        return checked_schema(name)
    except SchemaNameError as error:
        raise SettingsError("DATAPATTERNS_SCHEMA", str(error)) from error


def _listed_shards(listed: str) -> dict[str, str | URL]:
    shards: dict[str, str | URL] = {}
    for item in listed.split():
        name, equals, url = item.partition("=")
        if not equals or "/" in name:  # the = was one of the URL's
            raise SettingsError(
                "DATAPATTERNS_SHARDS",
                "write s0=postgresql://... s1=postgresql://..., separated by spaces",
            )
        if name in shards:
            raise SettingsError("DATAPATTERNS_SHARDS", f"{name!r} is there twice; name each once")
        shards[name] = url
    return shards


def _checked_shards(shards: Mapping[str, str | URL]) -> dict[str, URL]:
    for name in shards:
        if name == MAIN or not _SHARD_NAME.fullmatch(name):
            raise SettingsError(
                "shards",
                f"{name!r} cannot name a shard; use 1 to 40 of a-z, 0-9, - and _, not {MAIN!r}",
            )
    return {name: postgres_url(url, f"shards[{name}]") for name, url in shards.items()}
