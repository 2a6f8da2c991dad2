"""Name another of a Redis server's numbered databases."""

from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit


def with_redis_database(url: str, database: int) -> str:
    """Return ``url`` for another database of the same server.

    >>> with_redis_database("redis://localhost:6379/1?protocol=3", 4)
    'redis://localhost:6379/1?protocol=3&db=4'
    """
    parts = urlsplit(url)
    query = {**parse_qs(parts.query), "db": [str(database)]}
    return urlunsplit(parts._replace(query=urlencode(query, doseq=True)))
