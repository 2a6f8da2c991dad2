"""What shards hold and are asked is told for each bucket, and a plan weighs buckets by it."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import URL, insert, text

from datapatterns.errors import SettingsError
from datapatterns.sharding import (
    BucketStats,
    RebalancePlan,
    ShardCluster,
    ShardStats,
    TableCount,
    draw_stats,
)
from datapatterns.sharding.seeing.weighing import weigh_table
from tests.fixtures.shard_model import Basket, Line, create_tables, households, named

pytestmark = pytest.mark.postgres


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    for url in shard_urls[:2]:
        create_tables(url)
    with ShardCluster(
        control=shard_urls[0],
        shards=named(shard_urls[:2]),
        groups=[households],
        watch_load=True,
    ) as cluster:
        cluster.create_map()
        yield cluster


def put(cluster: ShardCluster, rows: list[dict[str, object]]) -> None:
    placed = cluster.placed(households, rows, key=lambda row: int(str(row["household_id"])))
    for shard, mine in placed.items():
        with cluster.begin_bulk(households, shard) as conn:
            conn.execute(insert(Basket), mine)


def bucket_of(key: int) -> int:
    return households.strategy.bucket(key)


def buckets(cluster: ShardCluster) -> dict[int, BucketStats]:
    return {bucket.bucket: bucket for shard in cluster.stats() for bucket in shard.buckets}


def test_rows_and_bytes_of_each_bucket_are_told(cluster: ShardCluster) -> None:
    put(cluster, [{"household_id": n % 40, "id": n, "store": "x" * 300} for n in range(2_000)])
    true = Counter(bucket_of(n % 40) for n in range(2_000))

    stats = cluster.stats()

    found = {bucket.bucket: bucket for shard in stats for bucket in shard.buckets}
    assert {number: each.rows for number, each in found.items() if each.rows} == true
    assert len(found) == 64
    for shard in stats:
        assert shard.rows == sum(table.rows for table in shard.tables)
        # An empty table takes some pages, which belong to no bucket.
        assert shard.bytes == pytest.approx(shard.tables[0].bytes, abs=64)
        per_row = [each.bytes / each.rows for each in shard.buckets if each.rows]
        assert max(per_row) < 1.05 * min(per_row)


def test_long_values_count_as_what_they_take(cluster: ShardCluster) -> None:
    """They lie aside, where the row itself does not tell of them."""
    noise = Random(3)  # noqa: S311 -- a sample
    long = "".join(chr(noise.randrange(33, 120)) for _ in range(60_000))
    put(cluster, [{"household_id": 1, "id": n, "store": long} for n in range(5)])
    put(cluster, [{"household_id": 2, "id": n, "store": "x"} for n in range(5)])

    found = buckets(cluster)

    assert found[bucket_of(1)].bytes > 200_000
    assert found[bucket_of(2)].bytes < 60_000


def test_a_large_table_is_weighed_by_a_sample_of_its_pages(cluster: ShardCluster) -> None:
    keys = [key for key in range(1_000) if cluster.router.map_of(households).shard_of(key) == "s0"]
    heavy = keys[0]
    rows: list[dict[str, object]] = [
        {"household_id": key, "id": n, "store": "x" * (800 if key == heavy else 80)}
        for n in range(200)
        for key in [*keys[:20], heavy]
        if key != heavy or n % 2
    ]
    put(cluster, [{**row, "id": place} for place, row in enumerate(rows)])
    shard_map = cluster.router.map_of(households)
    [(table, shard_key)] = [
        item for item in households.tables().items() if item[0].name == "basket"
    ]

    def weighed(pages: int) -> dict[int, float]:
        with cluster.engines["s0"].connect() as conn:
            return weigh_table(
                conn, table, shard_key, shard_map.strategy, sampled_pages=pages
            ).by_bucket()

    whole, sampled = weighed(10_000), weighed(30)

    assert sum(sampled.values()) == pytest.approx(sum(whole.values()))
    assert sampled != whole
    assert sampled == weighed(30)
    assert sampled[bucket_of(heavy)] == pytest.approx(whole[bucket_of(heavy)], rel=0.5)


def test_a_table_in_partitions_is_weighed_with_all_of_them(cluster: ShardCluster) -> None:
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.execute(text("DROP TABLE line"))
            conn.execute(
                text(
                    "CREATE TABLE line (household_id bigint, basket_id int, number int,"
                    " quantity int, PRIMARY KEY (household_id, basket_id, number))"
                    " PARTITION BY HASH (household_id)"
                )
            )
            for part in (0, 1):
                conn.execute(
                    text(
                        f"CREATE TABLE line_{part} PARTITION OF line"
                        f" FOR VALUES WITH (MODULUS 2, REMAINDER {part})"
                    )
                )
    shard_map = cluster.router.map_of(households)
    with cluster.begin_bulk(households, "s0") as conn:
        conn.execute(
            insert(Line),
            [
                {"household_id": key, "basket_id": 1, "number": n}
                for key in range(50)
                if shard_map.shard_of(key) == "s0"
                for n in range(50)
            ],
        )

    [line] = [table for table in cluster.stats()[0].tables if table.table == "line"]

    assert line.bytes > 100_000


def test_rows_of_a_bucket_that_moves_are_not_misplaced(cluster: ShardCluster) -> None:
    put(cluster, [{"household_id": 7, "id": 1}])
    shard_map = cluster.router.map_of(households)
    home, bucket = shard_map.shard_of(7), bucket_of(7)
    target = "s1" if home == "s0" else "s0"
    with cluster.engines[target].begin() as conn:
        conn.execute(text("INSERT INTO basket (household_id, id) VALUES (7, 1)"))
        conn.execute(
            text("INSERT INTO datapatterns.bucket VALUES (:group, :bucket, 'incoming', 2)"),
            {"group": shard_map.group_id, "bucket": bucket},
        )

    stats = {shard.shard: shard for shard in cluster.stats()}

    assert [table.misplaced for table in stats[target].tables] == [0, 0]
    assert stats[target].rows == 0
    assert stats[home].rows == 1


# Plans ----------------------------------------------------------------------------------------


def keys_of(cluster: ShardCluster, shard: str, count: int) -> list[int]:
    """Return keys of one shard, each in a bucket of its own."""
    shard_map = cluster.router.map_of(households)
    found: dict[int, int] = {}
    for key in range(2_000):
        if shard_map.shard_of(key) == shard:
            found.setdefault(bucket_of(key), key)
    return [*found.values()][:count]


def test_a_plan_weighs_buckets_by_what_it_is_told_to(cluster: ShardCluster) -> None:
    many, wide, busy = keys_of(cluster, "s0", 3)
    small = keys_of(cluster, "s1", 2)
    put(cluster, [{"household_id": many, "id": n} for n in range(90)])
    noise = Random(5)  # noqa: S311 -- a sample
    long = "".join(chr(noise.randrange(33, 120)) for _ in range(3_000))
    put(cluster, [{"household_id": wide, "id": n, "store": long} for n in range(80)])
    put(cluster, [{"household_id": key, "id": 1} for key in (busy, *small)])
    with cluster.session() as session:
        for _ in range(30):
            session.get(Basket, (busy, 1), populate_existing=True)

    plans = {by: cluster.plan(households, by=by, threshold=0.2) for by in ("rows", "bytes", "load")}
    mixed = cluster.plan(households, by={"bytes": 3, "load": 1})

    heaviest = {
        by: max(plan, key=lambda move: move.cost).bucket for by, plan in plans.items() if plan.moves
    }
    assert heaviest["rows"] in {bucket_of(many), bucket_of(wide)}
    assert plans["load"].held["s0"] > 0
    assert plans["load"].held["s1"] == 0
    assert plans["bytes"].held["s0"] > 10 * plans["bytes"].held["s1"]
    assert [plan.by for plan in plans.values()] == ["rows", "bytes", "load"]
    assert mixed.by == "millionths of 3 bytes + 1 load"
    assert sum(mixed.held.values()) == pytest.approx(1_000_000, abs=64)
    for by in ("bytes", "load"):
        drained = cluster.plan(households, by=by, draining=["s0"])
        assert drained.held_after["s0"] == 0


@pytest.mark.parametrize(
    ("by", "told"),
    [("size", "size"), ({}, "positive"), ({"rows": -1}, "positive"), ({"sise": 1}, "sise")],
)
def test_a_measure_that_there_is_not_is_refused(
    cluster: ShardCluster, by: object, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        cluster.plan(households, by=by)  # type: ignore[arg-type]  # on purpose


def test_a_plan_heeds_what_is_stored_about_shards(cluster: ShardCluster) -> None:
    put(cluster, [{"household_id": n, "id": 1} for n in range(400)])
    even = cluster.plan(households)
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("UPDATE datapatterns.shard SET weight = 3 WHERE shard_id = 's1'"))
    weighed = cluster.plan(households)
    told = cluster.plan(households, weights={"s1": 1.0})
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("UPDATE datapatterns.shard SET state = 'draining' WHERE shard_id = 's0'"))
    drained = cluster.plan(households)
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("UPDATE datapatterns.shard SET state = 'readonly' WHERE shard_id = 's0'"))
    left_alone = cluster.plan(households)

    assert len(left_alone) == 0
    assert left_alone.draining == ()
    assert weighed.weights == {"s0": 1.0, "s1": 3.0}
    assert {(move.source, move.target) for move in weighed} == {("s0", "s1")}
    assert told.moves == even.moves
    assert drained.draining == ("s0",)
    assert drained.held_after["s0"] == 0
    assert len(drained) == 32


def test_a_plan_survives_a_file(cluster: ShardCluster, tmp_path: Path) -> None:
    put(cluster, [{"household_id": key, "id": 1} for key in keys_of(cluster, "s0", 20)])
    plan = cluster.plan(households)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())

    assert plan.moves
    assert RebalancePlan.from_json(file.read_text()) == plan


# Pins and drawings ----------------------------------------------------------------------------


def test_keys_worth_a_pin_stand_out_and_are_not_alone(cluster: ShardCluster) -> None:
    hot, alone = keys_of(cluster, "s0", 2)
    beside = next(key for key in range(hot + 1, 9_000) if bucket_of(key) == bucket_of(hot))
    with cluster.session() as session:
        for key, times in (
            (hot, 30),
            (beside, 10),
            (alone, 30),
            *((k, 1) for k in range(500, 520)),
        ):
            for _ in range(times):
                session.get(Basket, (key, 1))

    advised = cluster.advise_pins(households, min_share=0.2)

    assert [key.key for key in advised] == [hot]
    assert advised[0].share == pytest.approx(30 / 90, abs=0.02)
    assert advised[0].shard == "s0"
    assert {key.key for key in cluster.hot_keys(households, limit=2)} == {hot, alone}
    with pytest.raises(ValueError, match="no share"):
        cluster.advise_pins(households, min_share=0)


def test_stats_are_drawn() -> None:
    def shard(name: str, first: int, rows: list[int]) -> ShardStats:
        held = tuple(
            BucketStats("tenant", first + place, count, count * 1_000, count, 0, count / 100)
            for place, count in enumerate(rows)
        )
        return ShardStats(name, (TableCount("t", "tenant", len(rows), sum(rows), 0, 0),), held)

    drawn = draw_stats([shard("s0", 0, [8, 0, 4]), shard("s10", 3, [2, 4, 0])])

    assert drawn.splitlines() == [
        "tenant",
        "  shard  buckets  rows                    bytes                   busy",
        "  s0           3  ████████████ 12         ████████████ 12.0 kB    ████████████ 0.12 s",
        "  s10          3  ██████       6          ██████       6.0 kB     ██████       0.06 s",
        "  rows of buckets 0 to 5:",
        "    █ ▄▂▄",
        "  busy of buckets 0 to 5:",
        "    █ ▄▂▄",
    ]
    assert draw_stats([]) == ""
