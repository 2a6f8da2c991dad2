import subprocess
import sys
from uuid import UUID

import pytest

from datapatterns.errors import BucketCountError
from datapatterns.sharding import Hash, Key

# Computed by PostgreSQL 18; data lies where they say, so they may never change.
GOLDEN: dict[Key, int] = {
    0: 432,
    1: 952,
    -1: 933,
    2**63 - 1: 630,
    "": 166,
    "customer-7": 961,
    "Größe": 216,
    UUID("00112233-4455-6677-8899-aabbccddeeff"): 390,
}


@pytest.mark.parametrize("buckets", [-8, 0, 3, 1000])
def test_a_number_of_buckets_that_bits_cannot_address_is_refused(buckets: int) -> None:
    with pytest.raises(BucketCountError, match="power of two"):
        Hash(buckets=buckets)


@pytest.mark.parametrize("key", [2**63, -(2**63) - 1])
def test_a_number_that_no_bigint_can_hold_is_refused(key: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Hash().bucket(key)


def test_buckets_are_those_of_the_first_release() -> None:
    assert {key: Hash().bucket(key) for key in GOLDEN} == GOLDEN


def test_another_process_finds_the_same_bucket() -> None:
    program = "from datapatterns.sharding import Hash; print(Hash().bucket('customer-7'))"

    printed = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout

    assert int(printed) == GOLDEN["customer-7"]


def test_values_are_looked_up_by_operator() -> None:
    strategy = Hash(buckets=8)

    assert strategy.buckets_for("=", 7) == frozenset((strategy.bucket(7),))
    assert strategy.buckets_for("in", [1, 2, 3]) == frozenset(map(strategy.bucket, (1, 2, 3)))
    assert strategy.buckets_for("in", []) == frozenset()
    with pytest.raises(TypeError, match="does not go with"):
        strategy.buckets_for("in", 7)


def test_keys_spread_evenly() -> None:
    strategy = Hash(buckets=4)
    counts = [0, 0, 0, 0]

    for key in range(20_000):
        counts[strategy.bucket(key)] += 1

    assert max(counts) < 1.05 * min(counts)
