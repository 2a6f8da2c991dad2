"""Whatever maps went through, each key has one bucket, and rows are found where they are."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, delete, select

from datapatterns.errors import MapChangeRefusedError
from datapatterns.sharding import EntityGroup, Key, ShardCluster, parts_of_id
from tests.fixtures.changing_maps import (
    NOTES,
    days,
    lands,
    move_by_hand,
    noted,
    read,
    shops,
    tenants,
    write,
)

pytestmark = pytest.mark.postgres

TEXTS = ["", "acme", "de", "fr", "it", "Ä", "😀", "zz"]
KEYS: dict[str, list[Any]] = {
    "tenant": [-(2**63), -1, 0, 1, 7, 11, 2**63 - 1],
    "day": [-(2**63), 99, 100, 101, 150, 199, 200, 2**63 - 1],
    "shop": TEXTS,
    "land": TEXTS,
}
# An example is a dozen changes, each with its transactions on two servers.
FEW = settings(max_examples=max(1, settings().max_examples // 10))
OPERATIONS = ["pin", "unpin", "split", "merge", "assign", "move"]


def steps(group: EntityGroup) -> st.SearchStrategy[list[tuple[str, Any, int]]]:
    key = st.sampled_from(KEYS[group.name])
    return st.lists(
        st.tuples(st.sampled_from(OPERATIONS), key, st.integers(0, 20)), min_size=8, max_size=14
    )


@pytest.fixture(scope="module")
def cluster(databases: Any) -> Iterator[ShardCluster]:  # noqa: ANN401 -- the plugin's
    urls: list[URL] = [databases.new(), databases.new()]
    with noted(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.mark.parametrize("group", [tenants, days, shops, lands], ids=lambda group: group.name)
@FEW
@given(data=st.data())
def test_each_key_has_one_bucket_and_its_rows_and_ids_lead_there(
    cluster: ShardCluster, group: EntityGroup, data: st.DataObject
) -> None:
    # Each example goes on with the map that the one before has left.
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.execute(delete(NOTES[group.name]))
    ids = cluster.ids(group)
    born: dict[Key, list[int]] = {}
    keys = KEYS[group.name]
    for operation, key, number in data.draw(steps(group)):
        made = ids.next(key)
        write(cluster, group, key, made)
        born.setdefault(key, []).append(made)
        change(cluster, group, operation, key, number)

        shard_map = cluster.router.map_of(group)
        for each, mine in born.items():
            assert read(cluster, group, each) == sorted(mine)
            for one in mine:
                since = shard_map.buckets_since(parts_of_id(one).bucket)
                assert shard_map.strategy.bucket(each) in since
        places_agree(cluster.engines["s0"], group, shard_map.strategy, keys)
    assert all(table.misplaced == 0 for shard in cluster.stats() for table in shard.tables)
    ids.close()


def change(
    cluster: ShardCluster,
    group: EntityGroup,
    operation: str,
    key: Any,  # noqa: ANN401 -- of any type
    number: int,
) -> None:
    shard_map = cluster.router.map_of(group)
    try:
        match operation:
            case "pin":
                cluster.pin(group, key)
            case "unpin":
                cluster.unpin(group, key)
            case "split" if group is days:
                cluster.split_range(group, at=key)
            case "merge" if group is days:
                cluster.merge_ranges(group, at=key)
            case "assign":
                cluster.assign(group, key, number)
            case _:
                bucket = shard_map.buckets[number % len(shard_map.buckets)]
                target = "s1" if shard_map.owners[bucket] == "s0" else "s0"
                move_by_hand(cluster, group, bucket, target)
    except MapChangeRefusedError:
        cluster.router.refresh()
        assert cluster.router.map_of(group) == shard_map


def places_agree(engine: Engine, group: EntityGroup, strategy: Any, keys: list[Any]) -> None:  # noqa: ANN401
    """Python, the SQL expression, and the conditions of buckets say the same."""
    table = NOTES[group.name]
    with engine.connect() as conn, conn.begin() as begun:
        conn.execute(delete(table))
        conn.execute(table.insert(), [{"key": key, "id": 0} for key in keys])
        inside = [
            group.predicate(table.c.key, bucket, strategy=strategy).label(f"in_{bucket}")
            for bucket in {*map(strategy.bucket, keys), *range(min(strategy.buckets, 20))}
        ]
        number = group.bucket_of(table.c.key, strategy=strategy)
        for key, bucket, *holds in conn.execute(select(table.c.key, number, *inside)):
            assert bucket == strategy.bucket(key)
            assert [each.name for each, held in zip(inside, holds, strict=True) if held] == [
                f"in_{bucket}"
            ]
        begun.rollback()
