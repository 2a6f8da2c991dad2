import pytest
from redis import Redis

from datapatterns_pytest.redis_urls import with_redis_database


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379/3",
        "redis://user:p%40ss@localhost:6379/3?protocol=3",
        "unix:///run/redis.sock?db=2",
        "unix://:secret@/run/a%20b.sock",
    ],
)
def test_the_client_uses_the_database_that_was_named(url: str) -> None:
    assert options(with_redis_database(url, 7)) == {**options(url), "db": 7}


def options(url: str) -> dict[str, object]:
    kept = ("host", "port", "path", "username", "password", "protocol", "db")
    given = Redis.from_url(url).connection_pool.connection_kwargs
    return {name: given[name] for name in kept if name in given}
