"""The address that leads through a proxy is the server's, but for the place."""

from traceback import format_exception

import pytest
from sqlalchemy import make_url

from datapatterns.errors import FaultRefusedError, SettingsError
from datapatterns.testing.faults.addresses import Upstream, through_proxy, upstream_of
from datapatterns.testing.faults.postgres_dialogue import PostgresDialogue
from datapatterns.testing.faults.redis_dialogue import RedisDialogue


@pytest.mark.parametrize(
    ("address", "upstream"),
    [
        ("postgresql://db.example/shop", Upstream(PostgresDialogue, None, "db.example", 5432)),
        ("postgresql+psycopg://u:p@[::1]:6000/x", Upstream(PostgresDialogue, None, "::1", 6000)),
        ("postgresql:///x?host=/run/pg", Upstream(PostgresDialogue, "/run/pg/.s.PGSQL.5432")),
        ("postgresql:///x?host=/s&port=7", Upstream(PostgresDialogue, "/s/.s.PGSQL.7")),
        ("postgresql:///x?host=db&port=7", Upstream(PostgresDialogue, None, "db", 7)),
        ("redis://cache.example/3", Upstream(RedisDialogue, None, "cache.example", 6379)),
        ("redis://:p@h:7000?db=3", Upstream(RedisDialogue, None, "h", 7000)),
        ("unix:///run/with%20space/v.sock?db=0", Upstream(RedisDialogue, "/run/with space/v.sock")),
    ],
)
def test_an_address_says_where_the_server_listens(address: str, upstream: Upstream) -> None:
    assert upstream_of(address) == upstream


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("postgresql:///shop", "names no host"),
        ("postgresql:///shop?host=a,b", "several hosts"),
        ("postgresql:///shop?host=a&host=b", "several hosts"),
        ("mysql://localhost/shop", "neither postgresql, redis nor unix"),
        ("rediss://localhost:6379/0", "redis:// address"),
        ("postgresql://u:secret@host:x/shop", "none of PostgreSQL or Redis"),
        ("shop", "none of PostgreSQL or Redis"),
    ],
)
def test_an_address_that_no_proxy_can_stand_before_is_refused(address: str, advice: str) -> None:
    with pytest.raises(FaultRefusedError, match=advice) as caught:
        upstream_of(address)
    assert "secret" not in "".join(format_exception(caught.value))


def test_half_an_address_of_redis_is_refused() -> None:
    with pytest.raises(SettingsError, match="Redis URL"):
        upstream_of("redis://:secret@host:x/0")


def test_user_password_database_and_options_stay_and_tls_goes() -> None:
    url = make_url(
        "postgresql+psycopg://u:p%40@db/shop?sslmode=verify-full&sslrootcert=x&options=-cfoo%3D1"
        "&channel_binding=require&gssencmode=require&application_name=web"
    )

    assert through_proxy(url, 7000) == make_url(
        "postgresql+psycopg://u:p%40@127.0.0.1:7000/shop?options=-cfoo%3D1&application_name=web"
        "&sslmode=disable&gssencmode=disable"
    )


def test_a_string_stays_a_string_with_its_password() -> None:
    assert (
        through_proxy("postgresql+psycopg://u:p@/shop?host=/run/pg&port=6000", 7000)
        == "postgresql+psycopg://u:p@127.0.0.1:7000/shop?gssencmode=disable&sslmode=disable"
    )


def test_another_driver_is_not_told_of_options_that_it_does_not_know() -> None:
    url = make_url("postgresql+asyncpg://u@db/shop?ssl=require")

    assert through_proxy(url, 7000) == make_url("postgresql+asyncpg://u@127.0.0.1:7000/shop")


@pytest.mark.parametrize(
    ("address", "through"),
    [
        ("redis://u:p%40@h:1/2?protocol=3", "redis://u:p%40@127.0.0.1:7000/2?protocol=3"),
        ("redis://h", "redis://127.0.0.1:7000"),
        ("unix://u:p@/run/v.sock?db=4", "redis://u:p@127.0.0.1:7000?db=4"),
        ("unix:///run/v.sock?db=4", "redis://127.0.0.1:7000?db=4"),
    ],
)
def test_a_redis_address_keeps_all_but_the_place(address: str, through: str) -> None:
    assert through_proxy(address, 7000) == through
