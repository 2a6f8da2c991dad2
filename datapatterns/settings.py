"""Where the servers are: from arguments, else the environment; what is secret is never shown.

=================  ============================================================================
setting            looked for in this order
=================  ============================================================================
``database_url``   argument, ``DATAPATTERNS_DATABASE_URL``, ``DATABASE_URL``
``read_models_url``  argument, ``DATAPATTERNS_READ_MODELS_URL``; unless given, the database
``redis_url``      argument, ``DATAPATTERNS_REDIS_URL``, ``REDIS_URL``
``shards``         argument, ``DATAPATTERNS_SHARDS`` (``name=url``, separated by spaces)
``schema``         argument, ``DATAPATTERNS_SCHEMA``, ``datapatterns``
=================  ============================================================================

A variable that is set to nothing counts as not set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import URL

from datapatterns.errors import SchemaNameError, SettingsError
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema
from datapatterns.urls import checked_redis_url, postgres_url

MAIN = "main"
"""What the database that is not a shard is called wherever databases are listed."""

READ_MODELS = "read-models"
"""What the database of the read models is called, if they have one of their own."""

_SHARD_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the servers are and where in them the library's tables live.

    Attributes:
        database_url: The database, for the driver that the library uses.
        read_models_url: The database of the read models; None if they are with the rest.
        redis_url: Redis or Valkey.
        shards: The shards by name, in the order in which they were given.
        schema: The schema of the library's tables.
    """

    database_url: URL | None = field(default=None, repr=False)
    read_models_url: URL | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    shards: Mapping[str, URL] = field(default_factory=dict, repr=False)
    schema: str = DEFAULT_SCHEMA


def settings_from(
    environ: Mapping[str, str],
    *,
    database_url: str | URL | None = None,
    read_models_url: str | URL | None = None,
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
    found_read_models = _first(environ, "DATAPATTERNS_READ_MODELS_URL")
    if read_models_url:
        found_read_models = ("read_models_url", read_models_url)
    found_redis = _first(environ, "DATAPATTERNS_REDIS_URL", "REDIS_URL")
    if redis_url:
        found_redis = ("redis_url", redis_url)
    found_shards: Mapping[str, str | URL] = (
        _listed_shards(environ.get("DATAPATTERNS_SHARDS", "")) if shards is None else shards
    )
    return Settings(
        database_url=postgres_url(found_database[1], found_database[0]) if found_database else None,
        read_models_url=postgres_url(found_read_models[1], found_read_models[0])
        if found_read_models
        else None,
        redis_url=checked_redis_url(str(found_redis[1]), found_redis[0]) if found_redis else None,
        shards=_checked_shards(found_shards),
        schema=_schema(environ, schema),
    )


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
        if name in {MAIN, READ_MODELS} or not _SHARD_NAME.fullmatch(name):
            raise SettingsError(
                "shards",
                f"{name!r} cannot name a shard; use 1 to 40 of a-z, 0-9, - and _, not {MAIN!r} or"
                f" {READ_MODELS!r}",
            )
    return {name: postgres_url(url, f"shards[{name}]") for name, url in shards.items()}
