"""What each strategy does with a key, without a server."""

import subprocess
import sys
from uuid import UUID

import pytest

from datapatterns.errors import BucketCountError, RangeBoundError, UnroutableKeyError
from datapatterns.sharding import (
    Composite,
    Directory,
    Hash,
    Jump,
    Ketama,
    KeyPart,
    ListMap,
    Modulo,
    Range,
    Rendezvous,
    ShardingStrategy,
)

KEYS: tuple[KeyPart, ...] = (0, 1, -1, 2**63 - 1, "", "customer-7", "Größe", UUID(int=2**127 + 5))
NODES = ["10.0.0.1:11211", "10.0.0.2:11211", "10.0.0.3:11211"]


# Data lies, and caches are warm, where these say: they may never change.
@pytest.mark.parametrize(
    ("nodes", "golden"),
    [
        (Jump(1000), JUMP := [0, 549, 313, 972, 730, 669, 494, 827]),
        (
            Rendezvous(["a", "b", "c"]),
            RENDEZVOUS := ["c", "a", "a", "b", "c", "a", "a", "a"],
        ),
        (Ketama(["a", "b", "c"]), KETAMA := ["b", "a", "b", "b", "c", "a", "c", "a"]),
    ],
)
def test_nodes_are_those_of_the_first_release(
    nodes: Jump | Rendezvous | Ketama, golden: list[int | str]
) -> None:
    assert [nodes.node(key) for key in KEYS] == golden


@pytest.mark.parametrize(("nodes", "key", "node"), [(57, 42, 43), (1024, 256, 520), (1, 7, 0)])
def test_jumps_are_those_that_were_published(nodes: int, key: int, node: int) -> None:
    assert Jump(nodes).node(key) == node


def test_another_process_finds_the_same_nodes() -> None:
    program = (
        "from datapatterns.sharding import Ketama, Rendezvous; n = ['a', 'b', 'c'];"
        " print(Rendezvous(n).node('customer-7'), Ketama(n).node('customer-7'))"
    )

    printed = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout

    assert printed.split() == [RENDEZVOUS[5], KETAMA[5]]


@pytest.mark.parametrize("nodes", [Rendezvous, Ketama])
def test_a_node_that_goes_takes_its_own_keys_only(
    nodes: type[Rendezvous] | type[Ketama],
) -> None:
    before, after = nodes(NODES), nodes(NODES[:2])

    moved = {key for key in range(2_000) if before.node(key) != after.node(key)}

    assert moved == {key for key in range(2_000) if before.node(key) == NODES[2]}


def test_the_order_of_nodes_does_not_matter() -> None:
    assert [Rendezvous(NODES).node(key) for key in KEYS] == [
        Rendezvous(NODES[::-1]).node(key) for key in KEYS
    ]
    assert [Ketama(NODES).node(key) for key in KEYS] == [
        Ketama(NODES[::-1]).node(key) for key in KEYS
    ]


def test_a_node_of_double_weight_takes_twice_as_many() -> None:
    weighted = Rendezvous(["small", "large"], [1, 2])

    large = sum(weighted.node(key) == "large" for key in range(6_000))

    assert 3_800 < large < 4_200


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jump(0),
        lambda: Rendezvous([]),
        lambda: Rendezvous(["a", "a"]),
        lambda: Rendezvous(["a", "b"], [1]),
        lambda: Rendezvous(["a"], [0]),
        lambda: Ketama("ab"),
        lambda: ListMap({}),
        lambda: ListMap({"a": 0, 1: 1}),
        lambda: ListMap({"a": -1}),
        lambda: Directory(Hash(), {"a": -1}),
        lambda: Range(["a"], [0]),
        lambda: Range(["a"], [0, 0]),
        lambda: Range(["a"], [0, -1]),
    ],
)
def test_what_makes_no_sense_is_refused(make: type) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_a_remainder_is_never_negative() -> None:
    assert [Modulo(5).bucket(key) for key in (-6, -5, -1, 0, 4, 5)] == [4, 0, 4, 0, 4, 0]
    with pytest.raises(UnroutableKeyError, match="use Hash"):
        Modulo(5).bucket("5")
    with pytest.raises(BucketCountError, match="positive"):
        Modulo(0)


@pytest.mark.parametrize("bounds", [["p", "g"], ["g", "g"], ["g", 7], [7.5], [None], [True]])
def test_bounds_that_do_not_ascend_are_refused(bounds: list[KeyPart]) -> None:
    with pytest.raises(RangeBoundError):
        Range(bounds)


def test_a_range_is_split_and_merged_without_moving_others() -> None:
    whole = Range(["g", "p"])

    split = whole.split("m")

    assert split == Range(["g", "m", "p"], [0, 1, 3, 2])
    assert [split.bucket(key) for key in ("a", "g", "l", "m", "o", "p", "z")] == [
        *(0, 1, 1, 3, 3, 2, 2)
    ]
    assert split.merge("m") == whole
    assert split.merge("p") == Range(["g", "m"], [0, 1, 3])
    assert whole.split("m", bucket=9).buckets == 10


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda r: r.split("g"), RangeBoundError),
        (lambda r: r.merge("h"), RangeBoundError),
        (lambda r: r.split(7), UnroutableKeyError),
        (lambda r: r.bucket(7), UnroutableKeyError),
    ],
)
def test_a_change_that_a_range_cannot_make_is_refused(change: type, error: type[Exception]) -> None:
    with pytest.raises(error):
        change(Range(["g", "p"]))


def test_a_range_knows_what_a_comparison_can_meet() -> None:
    ranges = Range([10, 20])

    assert ranges.buckets_for("<", 10) == frozenset({0})
    assert ranges.buckets_for("<=", 10) == frozenset({0, 1})
    assert ranges.buckets_for(">", 9) == frozenset({0, 1, 2})
    assert ranges.buckets_for(">=", 20) == frozenset({2})
    assert ranges.buckets_for("between", (10, 19)) == frozenset({1})
    assert ranges.buckets_for("between", (19, 10)) == frozenset({1})
    assert ranges.buckets_for("between", (25, 5)) == frozenset()
    assert ranges.buckets_for("in", [0, 25]) == frozenset({0, 2})


def test_a_key_that_is_not_listed_is_refused_unless_there_is_a_default() -> None:
    with pytest.raises(UnroutableKeyError, match="declare a default"):
        ListMap({"de": 0}).bucket("fr")
    assert ListMap({"de": 0}).buckets_for("in", ["de", "fr"]) == frozenset({0})
    assert ListMap({"de": 0}, default=1).bucket("fr") == 1


def test_a_directory_puts_single_keys_elsewhere() -> None:
    plain = Hash(buckets=8)

    pinned = Directory(plain).assign("acme", 8)

    assert pinned.buckets == 9
    assert pinned.buckets_for("in", ["acme", "globex"]) == frozenset({8, plain.bucket("globex")})
    assert pinned.buckets_for(">", "a") is None
    assert pinned.release("acme") == Directory(plain)
    with pytest.raises(KeyError):
        pinned.release("globex")


def test_a_composite_goes_to_a_block_by_its_first_part_alone() -> None:
    regions = Composite(Range(["m"]), Hash(buckets=4))

    assert regions.bucket(("us", "acme")) == 4 + Hash(buckets=4).bucket("acme")
    assert regions.buckets_for_prefix("=", "eu") == frozenset({0, 1, 2, 3})
    assert regions.buckets_for("<", ("m", "a")) == frozenset({*range(8)})
    assert regions.buckets_for("<", ("a", "a")) == frozenset({0, 1, 2, 3})
    assert regions.buckets_for(">=", ("n", "a")) == frozenset({4, 5, 6, 7})
    assert regions.buckets_for("between", (("a", "x"), ("b", "y"))) == frozenset({0, 1, 2, 3})


@pytest.mark.parametrize(
    "strategy", [Hash(), Modulo(4), Range([7]), ListMap({7: 0}, default=1), Directory()]
)
def test_an_operator_goes_with_its_values(strategy: ShardingStrategy) -> None:
    with pytest.raises(TypeError, match="does not go with"):
        strategy.buckets_for("=", [7])
    with pytest.raises(TypeError, match="does not go with"):
        strategy.buckets_for("in", 7)
    with pytest.raises(TypeError, match="two keys"):
        strategy.buckets_for("between", [7])
    assert strategy.buckets_for("in", []) == frozenset()
