"""Name another of a Redis server's numbered databases."""

from urllib.parse import parse_qs, urlencode


def with_redis_database(url: str, database: int) -> str:
    """Return ``url`` for another database of the same server.

    >>> with_redis_database("redis://localhost:6379/1?protocol=3", 4)
    'redis://localhost:6379/1?protocol=3&db=4'
    """
    address, _, options = url.partition("?")
    query = {**parse_qs(options), "db": [str(database)]}
    return f"{address}?{urlencode(query, doseq=True)}"
