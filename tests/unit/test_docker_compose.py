from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return services


def test_there_are_several_shards_and_redis(services: dict[str, Any]) -> None:
    assert sorted(services) == ["redis", "shard0", "shard1", "shard2", "shard3"]


@pytest.mark.parametrize("shard", ["shard0", "shard1", "shard2", "shard3"])
def test_each_shard_has_the_settings_that_the_patterns_rely_on(
    services: dict[str, Any], shard: str
) -> None:
    command = services[shard]["command"]

    settings = dict(setting.split("=", 1) for setting in command[2::2])
    assert command[1::2] == ["-c"] * len(settings)
    assert int(settings["max_prepared_transactions"]) > 0
    assert settings["wal_level"] == "logical"
    assert "pg_isready" in " ".join(services[shard]["healthcheck"]["test"])


def test_every_port_answers_on_this_machine_only_and_none_is_given_twice(
    services: dict[str, Any],
) -> None:
    ports = [port for service in services.values() for port in service["ports"]]

    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_every_volume_is_declared(services: dict[str, Any]) -> None:
    declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"]

    used = {volume.split(":")[0] for service in services.values() for volume in service["volumes"]}
    assert used == set(declared)
