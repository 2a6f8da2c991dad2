"""How a cache for asyncio reaches Redis, as `redis_sources` says for threads."""

from typing import Any

from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from datapatterns.cache_aside.redis_sources import ClusterSeeds, hosts_in, of_sentinels
from datapatterns.cache_aside.slots import Address
from datapatterns.urls import redis_urls


def async_pool_of(url: str, *, timeout_seconds: float) -> ConnectionPool:
    """Return a pool with the settings of connections to one server, or to whom sentinels name."""
    urls, fixed = redis_urls(url, "redis"), _fixed(timeout_seconds)
    if urls.kind == "server":
        return ConnectionPool.from_url(urls.each[0], **fixed)
    addresses, is_tls, settings = hosts_in(urls, [dict(parse_url(each)) for each in urls.each])
    own = of_sentinels(settings, is_tls=is_tls, timeout_seconds=timeout_seconds)
    known = Sentinel(addresses, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    return SentinelConnectionPool(  # type: ignore[no-untyped-call]
        urls.service, known, ssl=is_tls, **{**settings, **fixed, "db": urls.database}
    )


def async_pool_at(
    address: Address, seeds: ClusterSeeds, *, timeout_seconds: float
) -> ConnectionPool:
    """Return a pool with the settings of connections to one node of a cluster."""
    host, port = address
    settings = {**seeds.settings, **_fixed(timeout_seconds), "host": host, "port": port}
    return ConnectionPool(
        connection_class=SSLConnection if seeds.is_tls else Connection, **settings
    )


def _fixed(timeout_seconds: float) -> dict[str, Any]:
    return {
        "protocol": 2,
        "decode_responses": False,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
    }
