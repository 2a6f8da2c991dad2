import pytest
from redis import Redis

from datapatterns.errors import SettingsError
from datapatterns.urls import RedisUrls, redis_urls
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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://one:1/3", RedisUrls("server", ("redis://one:1/3",))),
        (
            "redis+cluster://ann:p%40ss@one:1,two:2?socket_keepalive=yes",
            RedisUrls(
                "cluster",
                (
                    "redis://ann:p%40ss@one:1?socket_keepalive=yes",
                    "redis://ann:p%40ss@two:2?socket_keepalive=yes",
                ),
            ),
        ),
        ("rediss+cluster://one", RedisUrls("cluster", ("rediss://one",))),
        (
            "redis+cluster://one:1,[::1]:2/0",
            RedisUrls("cluster", ("redis://one:1", "redis://[::1]:2")),
        ),
        (
            " redis+sentinel://:pw@one:1,two/my%20shop/3 ",
            RedisUrls("sentinel", ("redis://:pw@one:1", "redis://:pw@two"), "my shop", 3),
        ),
        ("rediss+sentinel://one:1/shop", RedisUrls("sentinel", ("rediss://one:1",), "shop", 0)),
    ],
)
def test_a_url_may_name_several_servers(url: str, expected: RedisUrls) -> None:
    assert redis_urls(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://one/1",
        "redis+cluster://one,/0",
        "redis+cluster://",
        "redis+sentinel://one:1",
        "redis+sentinel://one:1/shop/x",
        "redis+sentinel://one:1/shop/1/2",
        "redis+crowd://one:1",
        "redis+cluster:one:1",
        "unix+cluster:///one",
        "redis+cluster://one:1x",
        "redis+cluster://a@b@one:1",
    ],
)
def test_a_url_that_says_too_little_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        redis_urls(url)
