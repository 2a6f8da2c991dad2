from collections.abc import Sequence
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Text

from datapatterns.sharding import (
    Directory,
    EntityGroup,
    Hash,
    KeyPart,
    ListMap,
    Modulo,
    Range,
    ShardingStrategy,
    ShardMap,
)
from datapatterns.sharding.strategies.key_bytes import decoded, encoded
from datapatterns.sharding.strategies.stored import (
    StoredPlaces,
    places_of,
    routing_strategy,
    unpinned,
)

KEYS = {
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(st.characters(codec="utf-8")),
    UUID: st.uuids(),
}

DECLARED: Sequence[ShardingStrategy] = [
    Hash(buckets=8),
    Modulo(5),
    Range([10, 20]),
    Range(),
    ListMap({1: 0, 2: 1}, default=2),
    Directory(Hash(buckets=8), {7: 8}),
    Directory(Range([6]), {2: 2, 3: 3}),
]


@given(st.sampled_from([*KEYS]).flatmap(lambda type_: st.lists(KEYS[type_], min_size=3)))
def test_bytes_of_keys_sort_as_the_keys_and_lead_back_to_them(keys: list[KeyPart]) -> None:
    ordered = sorted(keys, key=encoded)

    assert ordered == sorted(keys)
    for low, high in pairwise(ordered):
        assert (low == high) is (encoded(low) == encoded(high))
    for key in keys:
        assert decoded(encoded(key), type(key)) == key


def test_bytes_that_are_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        decoded(b"abc", int)
    with pytest.raises(OverflowError):
        encoded(2**63)


@pytest.mark.parametrize("declared", DECLARED, ids=repr)
def test_what_a_map_keeps_of_a_strategy_routes_as_the_strategy(declared: ShardingStrategy) -> None:
    stored = routing_strategy(declared, places_of(declared))

    assert [stored.bucket(key) for key in range(30)] == [declared.bucket(key) for key in range(30)]


@pytest.mark.parametrize("declared", DECLARED, ids=repr)
def test_a_pinned_key_has_its_own_bucket_and_no_other_key_is_moved(
    declared: ShardingStrategy,
) -> None:
    kept = places_of(declared)

    pinned = routing_strategy(declared, StoredPlaces(kept.ranges, kept.entries, {7: 90}))

    assert pinned.bucket(7) == 90
    others = [key for key in range(30) if key != 7]
    assert [pinned.bucket(key) for key in others] == [declared.bucket(key) for key in others]
    assert unpinned(pinned, declared).bucket(7) == declared.bucket(7)
    assert unpinned(routing_strategy(declared, kept), declared).bucket(7) == declared.bucket(7)


def test_only_what_cannot_change_is_compared_with_the_map() -> None:
    def fingerprint(strategy: ShardingStrategy) -> str:
        return EntityGroup("g", strategy=strategy).fingerprint

    assert fingerprint(Range([1])) == fingerprint(Range([2, 3]))
    assert fingerprint(ListMap({1: 0})) == fingerprint(ListMap({2: 1}))
    assert fingerprint(Directory(Hash(), {1: 5})) == fingerprint(Directory(Hash()))
    different: list[ShardingStrategy] = [
        Range(),
        ListMap({1: 0}),
        ListMap({1: 0}, default=0),
        ListMap({1: 0}, default=1),
        Hash(),
        Hash(buckets=2048),
        Modulo(4),
        Directory(Hash()),
        Directory(Hash(buckets=2048)),
        Directory(Range()),
    ]
    assert len(set(map(fingerprint, different))) == len(different)


@pytest.mark.parametrize(
    "strategy", [Directory(ListMap({1: 0})), Directory(Directory()), Range(["", "a"])]
)
def test_what_a_map_could_not_keep_apart_is_refused(strategy: ShardingStrategy) -> None:
    key = Text if isinstance(strategy, Range) else EntityGroup("g").key

    with pytest.raises(ValueError, match=r"into one|lies below"):
        EntityGroup("g", strategy=strategy, key=key)


def test_rows_are_found_in_all_buckets_that_theirs_may_have_become() -> None:
    # 0 was split into 0 and 2, then 2 into 2 and 3; 2 was merged into 1, and a key of 1 went to 4.
    shard_map = ShardMap(
        1,
        7,
        Range([5, 9], [0, 1, 3]),
        ("a",) * 5,
        successors={0: frozenset({2}), 2: frozenset({1, 3}), 1: frozenset({4})},
        merged=frozenset({2}),
    )

    assert shard_map.buckets == [0, 1, 3, 4]
    # A split off bucket of one that is no more is not forgotten.
    assert shard_map.buckets_since(2) == {1, 3, 4}
    assert shard_map.buckets_since(0) == {0, 1, 3, 4}
    assert shard_map.buckets_since(3) == {3}
    with pytest.raises(ValueError, match="no bucket 5"):
        shard_map.buckets_since(5)
