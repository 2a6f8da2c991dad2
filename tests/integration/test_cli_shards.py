"""`datapatterns shards`."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from datapatterns.failpoints import armed
from datapatterns.sharding import RebalancePlan, ShardCluster
from tests.fixtures.atomic import (
    Died,
    baskets,
    keys_on_each,
    needs_prepared_transactions,
    put_on_each,
)
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.shard_model import Basket, households, sharded_shop

pytestmark = pytest.mark.postgres

APP = """
from datapatterns.sharding import RebalancePlan, ShardCluster
from tests.fixtures.shard_model import households

def cluster():
    return ShardCluster(control={control!r}, shards={shards!r}, groups=[households])

nothing = 7
"""


@pytest.fixture
def shop(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster


@pytest.fixture
def named(
    shop: ShardCluster, shard_urls: list[URL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    urls = {shard: shown(url) for shard, url in zip(shop.engines, shard_urls, strict=False)}
    name = f"shards_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(control=urls["s0"], shards=urls))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--cluster", f"{name}:cluster"


def test_shards_are_listed_with_what_they_own(run: Run, named: tuple[str, str]) -> None:
    found = rows(run("shards", "list", *named, "--json"))

    assert [(each["shard"], each["buckets"]) for each in found] == [
        ("s0", 22),
        ("s1", 21),
        ("s2", 21),
    ]
    assert {(each["group"], each["strategy"], each["epoch"]) for each in found} == {
        ("household", "hash", 1)
    }


def test_a_key_is_routed(run: Run, named: tuple[str, str], shop: ShardCluster) -> None:
    found = json.loads(run("shards", "route", "household", "42", *named, "--json").out)

    shard_map = shop.router.map_of(households)
    assert found == {
        "group": "household",
        "key": 42,
        "bucket": shard_map.strategy.bucket(42),
        "shard": shard_map.shard_of(42),
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("route", "tenant", "42"), "there is no group 'tenant'; there are household"),
        (("route", "household", "x"), "'x' is no bigint"),
        (("route", "household", str(2**63)), "does not fit into a bigint"),
    ],
)
def test_what_cannot_be_routed_is_refused(
    run: Run, named: tuple[str, str], arguments: tuple[str, ...], told: str
) -> None:
    ran = run("shards", *arguments, *named)

    assert ran.code == 2
    assert told in ran.err


@pytest.mark.parametrize("name", ["nothing", "missing"])
def test_what_is_no_cluster_is_refused(run: Run, named: tuple[str, str], name: str) -> None:
    where = named[1].replace(":cluster", f":{name}")

    ran = run("shards", "list", "--cluster", where)

    assert ran.code == 2
    assert where in ran.err


def test_rows_are_counted_and_drawn(run: Run, named: tuple[str, str], shop: ShardCluster) -> None:
    for key in keys_on_each(shop):
        with shop.session() as session, session.begin():
            session.add(Basket(household_id=key, id=1))

    ran = run("shards", "stats", *named)
    found = rows(run("shards", "stats", *named, "--json"))

    assert "█" in ran.out
    assert [each["rows"] for each in found if each["table"] == "basket"] == [1, 1, 1]


def test_rows_that_lie_where_nobody_looks_end_with_1(
    run: Run, named: tuple[str, str], shop: ShardCluster
) -> None:
    stray = next(key for key in range(100) if shop.router.map_of(households).shard_of(key) != "s0")
    with shop.engines["s0"].begin() as conn:
        conn.execute(text("INSERT INTO basket (household_id, id) VALUES (:key, 1)"), {"key": stray})

    ran = run("shards", "stats", *named)

    assert ran.code == 1
    assert "1 rows lie in buckets" in ran.err


def test_a_plan_says_what_should_move(run: Run, named: tuple[str, str], shop: ShardCluster) -> None:
    shard_map = shop.router.map_of(households)
    with shop.session() as session, session.begin():
        for key in [key for key in range(300) if shard_map.shard_of(key) == "s1"]:
            session.add(Basket(household_id=key, id=1))
    plan = ("shards", "plan", "household", *named)

    moves = rows(run(*plan, "--json"))
    few = rows(run(*plan, "--max-moves", "1", "--json"))
    drained = rows(run(*plan, "--drain", "s1", "--weight", "s2", "100", "--json"))

    assert {move["from"] for move in moves} == {"s1"}
    assert {move["to"] for move in moves} == {"s0", "s2"}
    assert len(few) == 1
    assert len(drained) >= 21
    assert {move["to"] for move in drained if move["from"] == "s1" and move["cost"]} == {"s2"}
    assert "bucket" in run(*plan).out


@pytest.mark.parametrize("options", [("--drain", "s9"), ("--weight", "s9", "2")])
def test_a_plan_for_strange_shards_is_refused(
    run: Run, named: tuple[str, str], options: tuple[str, ...]
) -> None:
    ran = run("shards", "plan", "household", *options, *named)

    assert ran.code == 2
    assert "s9" in ran.err


def test_what_the_dead_have_begun_is_ended(
    run: Run, named: tuple[str, str], shop: ShardCluster, shard_urls: list[URL]
) -> None:
    needs_prepared_transactions(shard_urls[0])

    def die() -> None:
        raise Died

    with armed("atomic.decided", die), suppress(Died):
        put_on_each(shop)

    told = run("shards", "recover", *named, "--dry-run", "--json")
    assert json.loads(told.out)["committed"] == 2
    assert len(baskets(shop)) == 1

    ran = run("shards", "recover", *named, "--json")

    assert ran.code == 0
    assert json.loads(ran.out)["committed"] == 2
    assert len(baskets(shop)) == 3


def test_a_shard_that_does_not_answer_is_named(
    run: Run, named: tuple[str, str], tmp_path: Path
) -> None:
    [app] = tmp_path.glob("*.py")
    away = ", shards={**{'s9': 'postgresql://u@127.0.0.1:1/x'}, **"
    (tmp_path / f"{app.stem}_away.py").write_text(
        app.read_text().replace(", shards={", away + "{").replace("}, groups", "}}, groups")
    )
    where = named[1].replace(app.stem, f"{app.stem}_away")

    ran = run("shards", "recover", "--cluster", where)

    assert ran.code == 1
    assert "s9" in ran.out


def test_what_shards_are_asked_is_shown(
    run: Run, named: tuple[str, str], shop: ShardCluster, shard_urls: list[URL]
) -> None:
    with (
        ShardCluster(
            control=shard_urls[0],
            shards=dict(zip(shop.engines, shard_urls, strict=False)),
            groups=[households],
            watch_load=True,
        ) as watched,
        watched.session() as session,
    ):
        for _ in range(5):
            session.get(Basket, (7, 1))
    bucket, shard = households.strategy.bucket(7), shop.router.map_of(households).shard_of(7)

    hot = rows(run("shards", "hot-keys", "household", *named, "--json"))
    pins = run("shards", "hot-keys", "household", "--worth-a-pin", "0.05", *named)
    shards = rows(run("shards", "stats", "--per", "shard", *named, "--json"))
    buckets = rows(run("shards", "stats", "--per", "bucket", *named, "--json"))
    drawn = run("shards", "stats", *named).out

    assert [(key["key"], key["shard"], key["hits_min"]) for key in hot] == [(7, shard, 5)]
    assert "no key stands out" in pins.err
    assert {each["shard"]: each["reads"] for each in shards if each["reads"]} == {shard: 5}
    assert [(each["bucket"], each["reads"]) for each in buckets if each["reads"]] == [(bucket, 5)]
    assert "busy of buckets 0 to 63:" in drawn


def test_a_plan_is_saved_to_a_new_file(
    run: Run, named: tuple[str, str], shop: ShardCluster, tmp_path: Path
) -> None:
    for key in keys_on_each(shop):
        with shop.session() as session, session.begin():
            session.add(Basket(household_id=key, id=1))
    file = tmp_path / "plan.json"
    plan = ("shards", "plan", "household", "--drain", "s1", "--save", str(file), *named)

    ran = run(*plan)
    again = run(*plan)

    assert ran.code == 0
    assert "(draining)" in ran.out
    saved = RebalancePlan.from_json(file.read_text())
    assert saved.draining == ("s1",)
    assert len(saved) == 21
    assert again.code == 2


@pytest.mark.parametrize(
    ("by", "told"),
    [
        (("--by", "size"), "'size' is none of rows, bytes, load"),
        (("--by", "rows=much"), "'much' is no number"),
        (("--by", "rows=1", "--by", "size=1"), "size"),
        (("--by", "load"), "watch_load=True"),
    ],
)
def test_what_weighs_nothing_is_refused(
    run: Run, named: tuple[str, str], by: tuple[str, ...], told: str
) -> None:
    ran = run("shards", "plan", "household", *by, *named)

    assert ran.code == 2
    assert told in ran.err
