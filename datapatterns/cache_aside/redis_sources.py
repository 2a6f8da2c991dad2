"""How a cache reaches Redis: one server, a cluster, or sentinels that know who leads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from redis import Redis
from redis.cluster import RedisCluster
from redis.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.sentinel import Sentinel, SentinelConnectionPool

from datapatterns.cache_aside.slots import Address, Remap
from datapatterns.errors import SettingsError
from datapatterns.urls import RedisUrls, redis_urls

_OF_ANOTHER_CLIENT = (
    "connection_class",
    "event_dispatcher",
    "himport_registry",
    "maint_notifications",
    "orig_",
    "oss_cluster",
    "redis_connect_func",
)
_ADVICE = (
    "write redis://user:password@host:6379/0, redis+cluster://host:6379,host:6380 or"
    " redis+sentinel://host:26379/name-of-the-primary, and only options that redis-py has"
)
_PORTS = {"cluster": 6_379, "sentinel": 26_379}


@dataclass(frozen=True, slots=True)
class ClusterSeeds:
    """How a cluster is found.

    Attributes:
        addresses: Some of its nodes.
        is_tls: Whether connections are encrypted.
        settings: Of connections to each node.
        remap: Where a node is for us that is elsewhere for the cluster.
    """

    addresses: tuple[Address, ...]
    is_tls: bool
    settings: Mapping[str, Any] = field(repr=False)
    remap: Remap

    def pool_of(self, address: Address) -> ConnectionPool:
        """Return a pool whose settings are those of connections to one node."""
        host, port = address
        connection_class = SSLConnection if self.is_tls else Connection
        pool = ConnectionPool(connection_class=connection_class, **self.settings)
        pool.connection_kwargs |= {"host": host, "port": port}
        return pool


Source: TypeAlias = ConnectionPool | ClusterSeeds
"""Of one server, a pool whose settings are used."""


def source_of(redis: object, *, timeout_seconds: float) -> Source:
    """Return how ``redis`` is reached; this connects to nobody.

    Args:
        redis: A URL, or a client whose settings are used.
        timeout_seconds: How long to wait for a sentinel.

    Raises:
        SettingsError: It is none that can be used.
    """
    match redis:
        case Redis():
            pool: ConnectionPool = redis.connection_pool
            return pool
        case RedisCluster():
            return _seeds_of(redis)
        case str():
            return _source_at(redis_urls(redis, "redis"), timeout_seconds)
        case _:
            kind = type(redis).__name__
            raise SettingsError(
                "redis", f"a {kind} is neither a URL nor a Redis nor a RedisCluster"
            )


def one_server(redis: object, *, timeout_seconds: float) -> ConnectionPool:
    """Return a pool whose settings are used, as `source_of` does; a cluster is refused."""
    source = source_of(redis, timeout_seconds=timeout_seconds)
    if isinstance(source, ClusterSeeds):
        raise SettingsError("redis", "this works with one server, not with a cluster")
    return source


def hosts_in(
    urls: RedisUrls, found: list[dict[str, Any]]
) -> tuple[tuple[Address, ...], bool, dict[str, Any]]:
    """Return the addresses, whether they use TLS, and the settings that all of them share.

    Args:
        urls: Of a cluster's nodes, or of sentinels.
        found: What redis-py reads in each.
    """
    addresses = tuple(
        (str(each.pop("host")), int(each.pop("port", _PORTS[urls.kind]))) for each in found
    )
    settings = found[0]
    is_tls = settings.pop("connection_class", None) is not None
    settings.pop("db", None)
    return addresses, is_tls, settings


def of_sentinels(
    settings: Mapping[str, Any], *, is_tls: bool, timeout_seconds: float
) -> dict[str, Any]:
    """Return the settings of connections to sentinels, who do not know the servers' users."""
    times = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    if not is_tls:
        return times
    certificates = {name: each for name, each in settings.items() if name.startswith("ssl_")}
    return {**times, **certificates, "ssl": True}


def _source_at(urls: RedisUrls, timeout_seconds: float) -> Source:
    try:
        if urls.kind == "server":
            pool = ConnectionPool.from_url(urls.each[0])
            pool.connection_class(**pool.connection_kwargs)  # does not connect
            return pool
        found = [dict(parse_url(each)) for each in urls.each]  # type: ignore[no-untyped-call]
        addresses, is_tls, settings = hosts_in(urls, found)
        if urls.kind == "cluster":
            seeds = ClusterSeeds(addresses, is_tls, settings, _as_it_is)
            tried = seeds.pool_of(addresses[0])
            tried.connection_class(**tried.connection_kwargs)
            return seeds
        own = of_sentinels(settings, is_tls=is_tls, timeout_seconds=timeout_seconds)
        known = Sentinel(addresses, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
        settings |= {"ssl": is_tls, "db": urls.database}
        return SentinelConnectionPool(urls.service, known, **settings)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):
        # What they say may quote the password.
        raise SettingsError("redis", _ADVICE) from None


def _seeds_of(client: RedisCluster) -> ClusterSeeds:
    manager = client.nodes_manager
    given = manager.connection_kwargs
    is_tls = bool(given.get("ssl")) or issubclass(
        given.get("connection_class") or Connection, SSLConnection
    )
    settings = {
        name: value
        for name, value in given.items()
        if name not in {"ssl", "host", "port"} and not name.startswith(_OF_ANOTHER_CLIENT)
    }
    addresses = tuple((node.host, node.port) for node in manager.startup_nodes.values())
    return ClusterSeeds(addresses, is_tls, settings, manager.address_remap or _as_it_is)


def _as_it_is(address: Address) -> Address:
    return address
