"""Name another of a Redis server's numbered databases."""

from contextlib import closing
from urllib.parse import parse_qs, urlencode

from redis import Redis


def of_worker(url: str, worker: str) -> str:
    """Return ``url`` for the database of a worker of pytest-xdist, called ``gw0``, ``gw1`` ..."""
    with closing(Redis.from_url(url)) as client:
        first = int(client.connection_pool.connection_kwargs.get("db") or 0)
    return with_redis_database(url, first + int(worker.removeprefix("gw")))


def with_redis_database(url: str, database: int) -> str:
    """Return ``url`` for another database of the same server.

    >>> with_redis_database("redis://localhost:6379/1?protocol=3", 4)
    'redis://localhost:6379/1?protocol=3&db=4'
    """
    address, _, options = url.partition("?")
    query = {**parse_qs(options), "db": [str(database)]}
    return f"{address}?{urlencode(query, doseq=True)}"
