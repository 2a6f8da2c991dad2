"""What a data layer gives: engines, clients, and answers of servers within a time-out."""

import asyncio
import pickle
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from redis import Redis
from sqlalchemy import URL, func, select, text

from datapatterns import DataLayer
from datapatterns.aio import in_transaction
from datapatterns.errors import (
    MissingRightsError,
    ServerTooOldError,
    ServerUnavailableError,
    SettingsError,
)
from datapatterns.sql.migration_status import migration_status


@pytest.mark.postgres
@pytest.mark.redis
def test_every_declared_server_is_asked_and_named(
    database_url: URL, shard_urls: list[URL], redis_url: str
) -> None:
    shards = {f"s{n}": url for n, url in enumerate(shard_urls)}
    with DataLayer(database_url, redis_url=redis_url, shards=shards) as layer:
        reports = layer.check()

        assert [report.name for report in reports] == ["main", *shards, "redis"]
        assert all(report.version.startswith("PostgreSQL 1") for report in reports[:-1])
        assert reports[-1].version.startswith(("Redis ", "Valkey "))
        assert layer.redis.ping() is True
        for name, engine in layer.shard_engines.items():
            assert engine.url.database == shards[name].database
        layer.migrations.check()


@pytest.mark.postgres
def test_the_async_engine_sees_the_same_database(database_url: URL) -> None:
    async def revision(layer: DataLayer) -> str | None:
        found = await in_transaction(layer.async_engine, migration_status)
        await layer.aclose()
        return found.revision

    layer = DataLayer(database_url)
    seen = asyncio.run(revision(layer))

    with layer, layer.engine.begin() as conn:
        assert seen == migration_status(conn).revision


@pytest.mark.postgres
def test_a_layer_that_was_closed_can_be_used_again(database_url: URL) -> None:
    layer = DataLayer(database_url)
    for _ in range(2):
        with layer, layer.engine.connect() as conn:
            assert conn.scalar(select(func.current_setting("application_name"))) == "datapatterns"


@pytest.mark.postgres
def test_what_the_url_says_wins_over_the_defaults(database_url: URL) -> None:
    url = database_url.update_query_dict({"application_name": "shop", "connect_timeout": "9"})

    with DataLayer(url) as layer, layer.engine.connect() as conn:
        assert conn.scalar(select(func.current_setting("application_name"))) == "shop"


def test_what_is_missing_is_said_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    layer = DataLayer()

    assert repr(layer) == "DataLayer(no database, schema=datapatterns)"
    assert layer.check() == []
    for use in (lambda: layer.engine, lambda: layer.redis, layer.migrations.status):
        with pytest.raises(SettingsError, match="DATAPATTERNS_"):
            use()


@pytest.mark.parametrize(
    "url", ["postgresql://ann:hidden@127.0.0.1:1/x", "postgresql://ann:hidden@no.such.invalid/x"]
)
def test_a_database_that_is_away_is_unavailable_and_its_password_is_not_shown(url: str) -> None:
    with DataLayer(url) as layer, pytest.raises(ServerUnavailableError) as away:
        layer.check()

    assert "hidden" not in str(away.value)
    assert "postgresql://ann@" in str(away.value)
    assert str(pickle.loads(pickle.dumps(away.value))) == str(away.value)  # noqa: S301 -- ours


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which somebody listens who never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_never_answers_is_away_after_the_time_out(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapatterns.layer.CONNECT_TIMEOUT_SECONDS", 1.0)
    database = DataLayer(f"postgresql://ann@127.0.0.1:{silent_port}/x")
    redis = DataLayer(redis_url=f"redis://127.0.0.1:{silent_port}/0", database_url=None)

    for layer in (database, redis):
        with layer, pytest.raises(ServerUnavailableError):
            layer.check()


def test_an_option_that_does_not_exist_is_a_mistake_in_the_settings() -> None:
    layer = DataLayer("postgresql://127.0.0.1/x?colour=green")

    with pytest.raises(SettingsError, match="colour"):
        layer.check()


@pytest.mark.postgres
def test_a_database_that_is_too_old_is_refused(database_url: URL) -> None:
    with DataLayer(database_url) as layer:
        layer.check()
        layer.engine.dialect.server_version_info = (13, 22)

        with pytest.raises(ServerTooOldError, match="PostgreSQL 13"):
            layer.check()


@pytest.mark.redis
def test_a_redis_without_a_database_of_that_number_is_a_mistake_in_the_settings(
    redis_url: str, redis_client: Redis
) -> None:
    databases = int(str(redis_client.config_get("databases")["databases"]))
    beyond = urlsplit(redis_url)._replace(path=f"/{databases}", query="").geturl()
    if beyond.startswith("unix:"):
        beyond = f"{redis_url.partition('?')[0]}?db={databases}"

    with DataLayer(redis_url=beyond) as layer, pytest.raises(SettingsError, match="no database"):
        layer.check()


@pytest.mark.redis
def test_a_redis_that_asks_for_a_password_is_told_from_one_that_is_away(
    redis_url: str, redis_client: object
) -> None:
    assert redis_client
    host = redis_url.partition("://")[2].rpartition("@")[2]
    scheme = redis_url.partition("://")[0]
    layer = DataLayer(redis_url=f"{scheme}://nobody:hidden@{host}")

    with layer, pytest.raises(MissingRightsError) as refused:
        layer.check()

    assert "hidden" not in str(refused.value)


@pytest.mark.postgres
@pytest.mark.redis
def test_an_embedded_layer_is_migrated_and_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    with DataLayer.embedded(shards=1, schema="shop") as layer:
        layer.migrations.check(revision_only=True)
        layer.redis.set("a", "b")
        with layer.shard_engines["s0"].connect() as conn:
            assert conn.scalar(text("SELECT count(*) FROM shop.library_migration"))

    with pytest.raises(ServerUnavailableError):
        layer.check()
