from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapatterns.sharding import Hash, ShardMap
from datapatterns.sharding.maps.shard_map import spread_evenly

shard_names = st.lists(st.from_regex(r"[a-z0-9_]{1,5}", fullmatch=True), min_size=1, unique=True)


@given(bits=st.integers(5, 12), shards=shard_names)
def test_no_shard_gets_more_than_one_bucket_above_another(bits: int, shards: list[str]) -> None:
    shards = shards[:32]

    counts = Counter(spread_evenly(2**bits, shards))

    assert set(counts) == set(shards)
    assert max(counts.values()) - min(counts.values()) <= 1


@given(shards=shard_names)
def test_the_order_of_the_shards_does_not_matter(shards: list[str]) -> None:
    assert spread_evenly(1024, shards) == spread_evenly(1024, shards[::-1])


@pytest.mark.parametrize("shards", [[], ["a", "b", "c"]])
def test_shards_without_a_bucket_are_refused(shards: list[str]) -> None:
    with pytest.raises(ValueError, match="shard"):
        spread_evenly(2, shards)


@given(keys=st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_rows_are_placed_where_their_keys_are_routed(keys: list[int]) -> None:
    shard_map = ShardMap(1, 1, Hash(buckets=64), spread_evenly(64, ["a", "b", "c"]))
    rows = list(enumerate(keys))

    placed = shard_map.placed(rows, lambda row: row[1])

    for shard, mine in placed.items():
        assert mine == [row for row in rows if shard_map.shard_of(row[1]) == shard]
    assert sum(map(len, placed.values())) == len(rows)


def test_a_shard_without_buckets_has_no_digest() -> None:
    shard_map = ShardMap(1, 1, Hash(buckets=2), ("a", "a"))

    assert shard_map.digest("a") is not None
    assert shard_map.digest("b") is None
