"""`datapatterns shards move`, and all else that changes where buckets lie."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from datapatterns.sharding import ShardCluster
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.moving import bucket_rows, keys_in, put, states_of
from tests.fixtures.shard_model import create_tables, households, sharded_shop

pytestmark = pytest.mark.postgres

APP = """
from datapatterns.sharding import ShardCluster
from tests.fixtures.shard_model import households

def cluster():
    return ShardCluster(control={control!r}, shards={shards!r}, groups=[households])
"""
BUCKET = 5


@pytest.fixture
def shop(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:2]) as cluster:
        put(cluster, keys_in(BUCKET, 1)[0], lines=2)
        yield cluster


@pytest.fixture
def named(
    shop: ShardCluster, shard_urls: list[URL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """A cluster with a server more than it uses."""
    assert shop.groups == (households,)
    create_tables(shard_urls[2])
    urls = {f"s{number}": shown(url) for number, url in enumerate(shard_urls[:3])}
    name = f"moves_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(control=urls["s0"], shards=urls))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--cluster", f"{name}:cluster"


def test_a_bucket_is_moved_and_told_of(
    run: Run, named: tuple[str, str], shop: ShardCluster
) -> None:
    source = shop.router.map_of(households).owners[BUCKET]
    target = "s1" if source == "s0" else "s0"
    words = ("shards", "move", "household", str(BUCKET), "--to", target, *named)

    would = run(*words, "--dry-run", "--json")
    assert json.loads(would.out) == {
        "group": "household",
        "bucket": BUCKET,
        "from": source,
        "to": target,
    }
    assert "CREATE INDEX CONCURRENTLY" in would.err
    assert states_of(shop, BUCKET) == {source: "owned"}

    moved = run(*words, "--clean-after-seconds", "0", "--mb-per-second", "100", "--json")
    assert moved.code == 0, moved.err
    found = json.loads(moved.out)
    assert (found["state"], found["rows"], found["error"]) == ("cleaned", 3, None)
    assert "handed over" in moved.err
    assert bucket_rows(shop, target, BUCKET) == (1, 2)
    assert rows(run("shards", "moves", *named, "--json")) == []
    assert [each["bucket"] for each in rows(run("shards", "moves", "--all", *named, "--json"))] == [
        BUCKET
    ]
    assert rows(run("shards", "resume", *named, "--json")) == []
    assert rows(run("shards", "resume", "--dry-run", *named, "--json")) == []
    assert rows(run("shards", "abort", "household", str(BUCKET), *named, "--json")) == []

    forgetting = ("shards", "forget", "household", "--shard", source, *named, "--json")
    for more in (("--dry-run",), ()):
        assert rows(run(*forgetting, *more)) == [{"shard": source, "bucket": BUCKET}]
    assert rows(run(*forgetting)) == []


def test_a_shard_is_added_filled_emptied_and_removed(
    run: Run, named: tuple[str, str], shop: ShardCluster, tmp_path: Path
) -> None:
    file = str(tmp_path / "plan.json")
    for bucket in (BUCKET + 2, BUCKET + 4):  # on the same shard
        put(shop, keys_in(bucket, 1)[0], lines=2)
    assert run("shards", "add", "s2", "--dry-run", *named).code == 0
    assert run("shards", "move", "household", "5", "--to", "s2", *named).code == 3
    assert run("shards", "add", "s2", *named).code == 0
    planned = rows(
        run("shards", "plan", "household", "--max-moves", "2", "--save", file, *named, "--json")
    )
    assert sorted(each["to"] for each in planned) == ["s0", "s2"]

    would = rows(run("shards", "rebalance", file, "--dry-run", *named, "--json"))
    assert [each["bucket"] for each in would] == [each["bucket"] for each in planned]
    words = ("--clean-after-seconds", "0", "--max-parallel", "2", *named, "--json")
    done = rows(run("shards", "rebalance", file, *words))
    assert [each["state"] for each in done] == ["cleaned"] * 2
    assert bucket_rows(shop, done[0]["from"], done[0]["bucket"]) == (0, 0)

    assert run("shards", "remove", "s2", *named).code == 2
    would = rows(run("shards", "drain", "s2", "--dry-run", *named, "--json"))
    assert [each["from"] for each in would] == ["s2"]
    assert [each["state"] for each in rows(run("shards", "drain", "s2", *words))] == ["cleaned"]
    assert run("shards", "remove", "s2", "--dry-run", *named).code == 0
    assert run("shards", "remove", "s2", *named).code == 0
    assert run("shards", "remove", "s2", *named).code == 0
