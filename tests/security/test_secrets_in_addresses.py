"""Whatever a password is made of, and however it is written, nobody reads it from us."""

import secrets
from collections.abc import Callable
from contextlib import closing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from datapatterns import DataLayer
from datapatterns.cache_aside import Cache, CachePolicy
from datapatterns.errors import DataPatternsError, SettingsError
from datapatterns.settings import settings_from
from datapatterns.sharding import EntityGroup, ShardCluster
from tests.fixtures.canaries import Canary
from tests.fixtures.commands import Run

CANARY = f"c{secrets.token_hex(6)}"
awkward = st.text(alphabet="@:/?#%[]=& ab1\\'\"é", max_size=6)
passwords = st.builds(lambda before, after: f"{before}{CANARY}{after}", awkward, awkward)

POSTGRES = [
    "postgresql://ann:{}@127.0.0.1:1/shop",
    "postgresql://ann:{}@127.0.0.1:1/shop?connect_timeout=1",
    "postgresql+psycopg://ann:{}@127.0.0.1:1/shop",
    "postgresql:/ann:{}@127.0.0.1/shop",
    "postgresql//ann:{}@127.0.0.1/shop",
    "ann:{}@127.0.0.1/shop",
    "host=127.0.0.1 port=1 password={}",
    "mysql://ann:{}@127.0.0.1/shop",
    "{}://127.0.0.1/shop",
    "postgresql://ann:{}@127.0.0.1:99999x/shop",
    "postgresql://ann:{}@127.0.0.1:99999/shop",
    "postgresql://ann:{}@one@127.0.0.1:1/shop",
    "postgresql://ann:one@{}@127.0.0.1:1/shop",
    "postgresql://ann:{}/x@127.0.0.1:1/shop",
    "postgresql://ann:1/{}@127.0.0.1:1/shop",
    "postgresql://ann:{}?x@127.0.0.1:1/shop",
    "postgresql://ann:{}#x@127.0.0.1:1/shop",
    "postgresql://ann:{}%zz@127.0.0.1:1/shop",
    "postgresql://ann:{}@[::1/shop",
    "postgresql://ann:{}@[::1]x@127.0.0.1/shop",
    "postgresql://ann:@[{}]@127.0.0.1:1/shop",
    "postgresql://ann:{}",
    "postgresql://127.0.0.1:1/shop?password={}",
    "postgresql://127.0.0.1:1/shop?password=x&password={}",
    "postgresql://127.0.0.1:1/shop?sslpassword={}",
    "postgresql://127.0.0.1:1/shop?pasword={}",
]
REDIS = [
    "redis://ann:{}@127.0.0.1:1/0",
    "redis://:{}@127.0.0.1:1",
    "rediss://ann:{}@127.0.0.1:1/0",
    "rediss_://ann:{}@127.0.0.1:1/0",
    "redis:/ann:{}@127.0.0.1:1/0",
    "ann:{}@127.0.0.1",
    "redis://ann:{}/x@127.0.0.1:1/0",
    "redis://ann:1/{}@127.0.0.1:1/0",
    "redis://ann:{}?x@127.0.0.1:1/0",
    "redis://ann:{}#x@127.0.0.1:1/0",
    "redis://ann:{}@127.0.0.1:99999x/0",
    "redis://ann:{}@127.0.0.1:1/nought",
    "redis://ann:{}@[::1/0",
    "redis://127.0.0.1:1/0?password={}",
    "redis://127.0.0.1:1/0?pasword={}",
    "unix://ann:{}@/nowhere.sock",
    "redis://ann:{}",
    "redis+cluster://ann:{}@127.0.0.1:1,127.0.0.1:2",
    "redis+cluster://ann:{}@127.0.0.1:1/7",
    "redis+cluster://ann:{}@127.0.0.1:99999x",
    "redis+cluster://127.0.0.1:1?password={}",
    "redis+cluster://127.0.0.1:1?pasword={}",
    "rediss+sentinel://ann:{}@127.0.0.1:1/shop",
    "redis+sentinel://ann:{}@127.0.0.1:1,127.0.0.1:2/shop/0",
    "redis+sentinel://ann:{}@127.0.0.1:1",
]


def _ask_cache(url: str) -> object:
    policy = CachePolicy(redis_timeout_seconds=0.2)
    engine = DataLayer("postgresql://127.0.0.1:1/shop").engine
    with closing(Cache(url, engine, name="product", policy=policy)) as cache:
        return cache.relay()


WAYS: dict[str, Callable[[str], object]] = {
    "check": lambda url: DataLayer(url).check(),
    "connect": lambda url: DataLayer(url).engine.connect(),
    "execute": lambda url: _execute(DataLayer(url)),
    "migrate": lambda url: DataLayer(url).migrations.upgrade(),
    "shard": lambda url: DataLayer(shards={"s0": url}).check(),
    "cluster": lambda url: _cluster(url).create_map(),
    "environment": lambda url: settings_from({"DATABASE_URL": url}),
    "shards": lambda url: settings_from({"DATAPATTERNS_SHARDS": f"s0={url}"}),
}
WAYS_TO_REDIS: dict[str, Callable[[str], object]] = {
    "check": lambda url: DataLayer(redis_url=url).check(),
    "ping": lambda url: DataLayer(redis_url=url).redis.ping(),
    "cache": _ask_cache,
    "environment": lambda url: settings_from({"REDIS_URL": url}),
}
households = EntityGroup("canary_household")


@pytest.mark.usefixtures("no_servers_named")  # what an address does not say comes from there
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spelling", POSTGRES)
def test_a_password_is_shown_in_no_way_to_use_an_address(
    canary: Canary, spelling: str, way: str
) -> None:
    try:
        canary.show(WAYS[way](spelling.format(canary.word)))
    except (DataPatternsError, SQLAlchemyError, OSError) as error:
        canary.show_raised(error)

    assert canary.said


@pytest.mark.usefixtures("no_servers_named")  # what an address does not say comes from there
@pytest.mark.parametrize("way", WAYS_TO_REDIS)
@pytest.mark.parametrize("spelling", REDIS)
def test_a_password_of_redis_is_shown_in_no_way_to_use_an_address(
    canary: Canary, spelling: str, way: str
) -> None:
    try:
        canary.show(WAYS_TO_REDIS[way](spelling.format(canary.word)))
    except (DataPatternsError, RedisError, OSError) as error:
        canary.show_raised(error)

    assert canary.said


@pytest.mark.parametrize("spelling", POSTGRES)
def test_what_holds_an_address_does_not_show_its_password(canary: Canary, spelling: str) -> None:
    with suppress(SettingsError), closing(DataLayer(spelling.format(canary.word))) as layer:
        canary.show(layer, layer.settings, layer.migrations, layer.engine, layer.engine.url)
        canary.show(layer.async_engine, layer.events, layer.projections, layer.engine.pool)
    with suppress(SettingsError), closing(_cluster(spelling.format(canary.word))) as cluster:
        canary.show(cluster, cluster.engines)


@pytest.mark.parametrize("spelling", REDIS)
def test_what_holds_an_address_of_redis_does_not_show_its_password(
    canary: Canary, spelling: str
) -> None:
    with suppress(SettingsError):
        layer = DataLayer("postgresql://127.0.0.1:1/x", redis_url=spelling.format(canary.word))
        with closing(layer), closing(layer.cache("product")) as cache:
            canary.show(layer, layer.settings, layer.redis, layer.projections, cache)
            canary.show(cache.stats())


@pytest.mark.parametrize("options", [(), ("--json",), ("--debug",), ("--json", "--debug")])
@pytest.mark.parametrize("command", [("doctor",), ("migrate", "status"), ("migrate", "upgrade")])
def test_no_command_prints_a_password(
    canary: Canary, run: Run, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    addresses = [("--database-url", spelling) for spelling in POSTGRES]
    if command == ("doctor",):
        addresses += [("--redis-url", spelling) for spelling in REDIS]

    for option, spelling in addresses:
        ran = run(*command, *options, option, spelling.format(canary.word))
        canary.show(ran.out, ran.err)
        assert ran.code in {2, 4}, (spelling, ran)


@given(password=passwords, before=st.sampled_from(["", "postgres", "postgresql+psycopg"]))
def test_a_database_password_is_never_shown(password: str, before: str) -> None:
    _assert_hidden(lambda: DataLayer(f"{before or 'postgresql'}://ann:{password}@host:1/shop"))
    _assert_hidden(lambda: DataLayer(shards={"s0": f"postgresql://ann:{password}@host:1/shop"}))


@given(password=passwords)
def test_a_redis_password_is_never_shown(password: str) -> None:
    _assert_hidden(lambda: DataLayer(redis_url=f"redis://ann:{password}@host:1/0"))
    _assert_hidden(lambda: DataLayer(redis_url=f"unix://ann:{password}@/run/redis.sock"))


def _assert_hidden(make: Callable[[], DataLayer]) -> None:
    try:
        layer = make()
    except SettingsError as error:
        shown = f"{error!r} {error} {error.__cause__} "
    else:
        shown = f"{layer!r} {layer.settings!r} {layer.migrations!r}"
    assert CANARY not in shown


def _execute(layer: DataLayer) -> object:
    with layer.engine.begin() as conn:
        return conn.execute(text("SELECT 1")).all()


def _cluster(url: str) -> ShardCluster:
    return ShardCluster(control=url, shards={"s0": url}, groups=[households])
