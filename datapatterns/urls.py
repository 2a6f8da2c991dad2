"""Addresses of servers: which can be used, and how each may be shown.

What parsers say of an address quotes it, passwords included; so nobody parses one but this module,
and none of its errors is chained to a parser's.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Literal
from urllib.parse import unquote, urlsplit

from psycopg import pq
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from datapatterns.errors import SettingsError

HIGHEST_PORT = 65_535

_POSTGRES = {"postgres", "postgresql", "postgresql+psycopg"}
_REDIS = {"redis", "rediss", "unix"}
_OTHER_DATABASES = re.compile(
    r"(cockroachdb|mariadb|mssql|mysql|oracle|postgresql|sqlite)(\+[a-z0-9_]{1,20})?"
)
_SECRET_OPTIONS = {"oauth_client_secret", "scram_client_key", "scram_server_key"}
_REDIS_DATABASE = re.compile(r"/?[0-9]{0,9}")


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
        # What is no name of a driver may be a password that slipped to the beginning.
        known = _OTHER_DATABASES.fullmatch(parsed.drivername)
        named = repr(parsed.drivername) if known else "what stands before the ://"
        raise SettingsError(setting, f"{named} is not for this; {_POSTGRES_ADVICE}")
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


def without_secret_options(url: URL) -> tuple[URL, dict[str, str]]:
    """Return ``url`` as an engine may show it, and the options that it would show as they are.

    The password is hidden by SQLAlchemy; these are to be given to the driver beside the URL.
    """
    options = url.normalized_query
    found = {name: options[name][-1] for name in options.keys() - _shown_options()}
    return url.difference_update_query(found), found


@cache
def _shown_options() -> frozenset[str]:
    # Not a list of secrets: a misspelt "password" is in none.
    known = {option.keyword.decode(): option.dispchar for option in pq.Conninfo.get_defaults()}
    return frozenset(name for name, shown in known.items() if shown != b"*") - _SECRET_OPTIONS


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


@dataclass(frozen=True, slots=True)
class RedisUrls:
    """What a URL says of Redis or Valkey: where one server is, or several that belong together.

    Attributes:
        kind: Whether it is one server, nodes of a cluster, or sentinels.
        each: The URL of each, as if there was no other.
        service: What the sentinels call the primary.
        database: Which of its databases, where sentinels say who it is.
    """

    kind: Literal["server", "cluster", "sentinel"]
    each: tuple[str, ...] = field(repr=False)
    service: str = ""
    database: int = 0


def redis_urls(url: str, setting: str = "Redis URL") -> RedisUrls:
    """Return what ``url`` says, which may be one of a cluster or of sentinels.

    >>> redis_urls("redis+sentinel://one:26379,two:26379/shop/3").service
    'shop'

    Raises:
        SettingsError: It cannot be used; ``setting`` says which one.
    """
    scheme, plus, rest = url.strip().partition("+")
    if not plus or scheme not in {"redis", "rediss"}:
        return RedisUrls("server", (checked_redis_url(url, setting),))
    kind, _, rest = rest.partition("://")
    found = _SEVERAL.fullmatch(rest)
    hosts, path, query = found.groups("") if found else ("", "", "")
    user, at, hosts = hosts.rpartition("@")
    each = tuple(f"{scheme}://{user}{at}{host}{query}" for host in hosts.split(","))
    for one in each:
        checked_redis_url(one, setting)
    match kind, path.strip("/").split("/"):
        case "cluster", ["" | "0"]:
            return RedisUrls("cluster", each)
        case "sentinel", [service, *database] if service and _is_number(database):
            return RedisUrls("sentinel", each, unquote(service), int("".join(database) or 0))
    raise SettingsError(
        setting,
        f"write {scheme}+cluster://user:password@host:6379,host:6380 or"
        f" {scheme}+sentinel://user:password@host:26379,host:26380/name-of-the-primary/0",
    )


_SEVERAL = re.compile(r"([^/?#]*)(/[^?#]*)?(\?[^#]*)?")


def _is_number(parts: list[str]) -> bool:
    return len(parts) <= 1 and _REDIS_DATABASE.fullmatch("".join(parts)) is not None


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
