"""`datapatterns shards split|merge|pin|unpin|assign`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from datapatterns.sharding import ShardCluster
from tests.fixtures.changing_maps import days, lands, noted, tenants
from tests.fixtures.commands import Run
from tests.fixtures.empty_database import shown

pytestmark = pytest.mark.postgres

APP = """
from datapatterns.sharding import ShardCluster
from tests.fixtures.changing_maps import GROUPS

def cluster():
    return ShardCluster(control={control!r}, shards={shards!r}, groups=GROUPS)
"""


@pytest.fixture
def cluster(
    run: Run, shard_urls: list[URL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ShardCluster]:
    assert callable(run)  # it clears the environment
    with noted(shard_urls[:2]) as cluster:
        urls = {shard: shown(url) for shard, url in zip(cluster.engines, shard_urls, strict=False)}
        name = f"maps_app_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(APP.format(control=urls["s0"], shards=urls))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("DATAPATTERNS_CLUSTER", f"{name}:cluster")
        yield cluster


def told(run: Run, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("shards", *arguments, "--json").out)
    return found


def test_ranges_are_split_and_merged(run: Run, cluster: ShardCluster) -> None:
    planned = told(run, "split", "day", "150", "--dry-run")
    done = told(run, "split", "day", "150")
    again = told(run, "split", "day", "150")
    merged = told(run, "merge", "day", "150")

    assert planned == {**done, "epoch": None}
    assert done == {
        "group": "day",
        "change": "split",
        "key": 150,
        "from_bucket": 1,
        "to_bucket": 3,
        "shard": "s1",
        "changed": True,
        "epoch": 2,
    }
    assert (again["changed"], again["to_bucket"]) == (False, 3)
    assert (merged["from_bucket"], merged["to_bucket"]) == (3, 1)
    assert cluster.router.map_of(days).strategy.bucket(150) == 1


def test_a_key_is_pinned_and_unpinned(run: Run, cluster: ShardCluster) -> None:
    pinned = told(run, "pin", "tenant", "7")
    routed = told(run, "route", "tenant", "7")
    text = run("shards", "pin", "tenant", "7")
    unpinned = told(run, "unpin", "tenant", "7")

    assert pinned["to_bucket"] == routed["bucket"] == 8
    assert "it was so already" in text.err + text.out
    assert unpinned["from_bucket"] == 8
    assert cluster.router.map_of(tenants).strategy.bucket(7) == unpinned["to_bucket"]


def test_a_key_is_assigned(run: Run, cluster: ShardCluster) -> None:
    assigned = told(run, "assign", "land", "it", "0")

    assert (assigned["from_bucket"], assigned["to_bucket"]) == (2, 0)
    assert cluster.router.map_of(lands).strategy.bucket("it") == 0


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["split", "tenant", "7"], "has no ranges"),
        (["split", "day", "later"], "no bigint"),
        (["merge", "day", "100"], "move one of them first"),
        (["pin", "nobody", "7"], "there is no group"),
        (["assign", "shop", "corner", "99"], "no bucket 99"),
    ],
)
def test_what_cannot_be_done_is_refused(run: Run, arguments: list[str], said: str) -> None:
    found = run("shards", *arguments)

    assert found.code == 2
    assert said in found.err
