"""A statement of one key has a shorter way to its bucket, to the same bucket."""

from typing import Any

import pytest
from sqlalchemy import Numeric, Select, bindparam, literal, select

from datapatterns.errors import ShardKeyError
from datapatterns.sharding.routing.footprint import footprint_of
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.strategies.listed import ListMap
from tests.fixtures.shard_model import Basket, households

PLACEMENTS = Placements([households])
STRATEGY = households.strategy
IDS = select(Basket.id)
MINE = IDS.where(Basket.household_id == bindparam("mine", 7))


@pytest.mark.parametrize("passed", [{}, {"mine": 12}, {"mine": -1}, {"mine": None}])
@pytest.mark.parametrize(
    "statement",
    [
        MINE,
        MINE.where(Basket.id > 3),
        MINE.where(Basket.household_id == 7),
        IDS.where(Basket.household_id == 7, Basket.id == 1),
        IDS.where(literal(7) == Basket.household_id),
        IDS.where(Basket.household_id.in_([7])),
        IDS,
    ],
)
def test_it_leads_to_the_same_bucket(statement: Select[Any], passed: dict[str, Any]) -> None:
    footprint = footprint_of(statement, PLACEMENTS)
    (block,) = footprint.blocks

    assert footprint.buckets(passed, STRATEGY) == block.buckets(passed, STRATEGY)


@pytest.mark.parametrize("value", ["7", 7.0, True, 2**63])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ShardKeyError):
        footprint_of(MINE, PLACEMENTS).buckets({"mine": value}, STRATEGY)


def test_a_number_that_is_sent_as_a_fraction_is_no_key() -> None:
    fraction = IDS.where(Basket.household_id == bindparam("mine", 7, type_=Numeric()))

    with pytest.raises(ShardKeyError):
        footprint_of(fraction, PLACEMENTS).buckets({}, STRATEGY)


def test_a_key_that_no_list_holds_has_no_bucket() -> None:
    listed = ListMap({1: 0, 2: 1})

    assert footprint_of(MINE, PLACEMENTS).buckets({"mine": 2}, listed) == frozenset((1,))
    assert footprint_of(MINE, PLACEMENTS).buckets({"mine": 3}, listed) == frozenset()
