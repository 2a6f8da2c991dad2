"""Where a server listens, and the address that leads there through a proxy."""

from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from datapatterns.errors import FaultRefusedError
from datapatterns.testing.faults.dialogues import Dialogue
from datapatterns.testing.faults.postgres_dialogue import PostgresDialogue
from datapatterns.testing.faults.redis_dialogue import RedisDialogue
from datapatterns.urls import checked_redis_url

Address = TypeVar("Address", URL, str)

PROXY_HOST = "127.0.0.1"

_POSTGRES_PORT = 5432
_REDIS_PORT = 6379
_REDIS_SCHEMES = {"redis", "unix"}


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server, and the language that it speaks.

    Attributes:
        dialogue: What understands one connection to it.
        socket: The path of its Unix socket, if it is to be reached by that.
        host: Its host otherwise.
        port: Its port there.
    """

    dialogue: type[Dialogue]
    socket: str | None = None
    host: str = ""
    port: int = 0


def upstream_of(address: URL | str) -> Upstream:
    """Return where the server with this address listens.

    Raises:
        FaultRefusedError: It is none of PostgreSQL or Redis, names no host or several, or asks
            for TLS where only the client's driver could do without.
        SettingsError: It is no whole address of Redis.
    """
    if isinstance(address, str) and _scheme(address) in _REDIS_SCHEMES | {"rediss"}:
        return _redis_upstream(address)
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        # Not chained: what the parser says may quote a piece of the password.
        raise _refused("the address is none of PostgreSQL or Redis") from None
    if url.get_backend_name() != "postgresql":
        raise _refused(f"{url.get_backend_name()} is neither postgresql, redis nor unix")
    return _postgres_upstream(url)


def through_proxy(address: Address, port: int) -> Address:
    """Return the address, of the same kind, under which a proxy on ``port`` serves ``address``."""
    if isinstance(address, URL):
        return _postgres_through(address, port)
    if _scheme(address) in _REDIS_SCHEMES:
        return _redis_through(address, port)
    return _postgres_through(make_url(address), port).render_as_string(hide_password=False)


def _postgres_upstream(url: URL) -> Upstream:
    host = url.host or url.query.get("host")
    port = url.port or url.query.get("port") or _POSTGRES_PORT
    if not host:
        raise _refused("the address names no host; add one, or ?host=/var/run/postgresql")
    if not isinstance(host, str) or "," in host or isinstance(port, tuple):
        raise _refused("the address names several hosts; a proxy stands before one of them")
    if host.startswith("/"):
        return Upstream(PostgresDialogue, socket=f"{host}/.s.PGSQL.{port}")
    return Upstream(PostgresDialogue, host=host, port=int(port))


def _postgres_through(url: URL, port: int) -> URL:
    tls = [name for name in url.query if name.startswith("ssl") or name == "channel_binding"]
    plain = url.difference_update_query([*tls, "host", "hostaddr", "port", "gssencmode"])
    if "psycopg" in url.get_driver_name():
        # Nothing could be recognised in an encrypted stream; and it spares asking.
        plain = plain.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
    return plain.set(host=PROXY_HOST, port=port)


def _redis_upstream(url: str) -> Upstream:
    parts = urlsplit(checked_redis_url(url))
    if parts.scheme == "rediss":
        raise _refused("TLS hides what passes; give the proxy the server's redis:// address")
    if parts.scheme == "unix":
        return Upstream(RedisDialogue, socket=unquote(parts.path))
    return Upstream(
        RedisDialogue, host=parts.hostname or "localhost", port=parts.port or _REDIS_PORT
    )


def _redis_through(url: str, port: int) -> str:
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    path = "" if parts.scheme == "unix" else parts.path
    netloc = f"{credentials}{at}{PROXY_HOST}:{port}"
    return parts._replace(scheme="redis", netloc=netloc, path=path).geturl()


def _scheme(address: str) -> str:
    return address.partition("://")[0].lower()


def _refused(reason: str) -> FaultRefusedError:
    return FaultRefusedError("a proxy", reason)
