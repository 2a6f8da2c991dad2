"""A guarded statement's cache key, put together from two, is what SQLAlchemy would have made."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Select, bindparam, exists, func, select
from sqlalchemy.orm import aliased, joinedload, selectinload

from datapatterns.sharding.maps.ownership import owns_buckets
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.routing.guarded import guarded_shape, with_guard, with_guard_of
from datapatterns.sharding.strategies import Hash
from tests.fixtures.shard_model import Basket, Line

MAP = ShardMap(1, 1, Hash(buckets=8), ("s0", "s1") * 4, {5: 2})
OTHER = aliased(Basket)

SHAPES: list[Callable[[int], Any]] = [
    lambda key: select(Basket).where(Basket.household_id == key, Basket.id == key + 1),
    lambda key: select(Basket).where(Basket.household_id.in_([key, key + 1])).limit(key),
    lambda key: (
        select(func.coalesce(Basket.cents, key))
        .where(Basket.household_id == key)
        .order_by(Basket.cents + key)
        .offset(key)
    ),
    lambda key: (
        select(Basket, Line)
        .join(Line, (Line.household_id == Basket.household_id) & (Line.quantity > key))
        .where(Basket.household_id == key, exists().where(OTHER.household_id == key + 2))
    ),
    lambda key: (
        select(Basket)
        .where(Basket.household_id == key)
        .options(joinedload(Basket.lines), selectinload(Basket.lines.and_(Line.number == key)))
    ),
    lambda key: select(Basket).where(Basket.household_id == bindparam("key")).params(key=key),
    lambda key: select(Basket).where(
        Basket.household_id == bindparam("key", key), Basket.id == bindparam("key", key)
    ),
]


def keys_of(statement: Select[Any]) -> tuple[Any, list[int], Any]:
    key = statement._generate_cache_key()  # noqa: SLF001
    assert key is not None
    return key.key, [id(bind) for bind in key.bindparams], key.params


@pytest.mark.parametrize("made", SHAPES)
def test_the_key_is_the_one_that_sqlalchemy_makes(made: Callable[[int], Any]) -> None:
    first, guard = made(3), owns_buckets(MAP, [4])
    shape = guarded_shape(first, guard, with_guard(first, guard))
    assert shape is not None

    second, other = made(7), owns_buckets(MAP, [5])
    guarded = with_guard_of(second, other, shape)

    assert keys_of(guarded) == keys_of(with_guard(second, other))
    # Whatever is added to it later gives it a key of its own.
    assert keys_of(guarded.limit(9))[0] == keys_of(with_guard(second, other).limit(9))[0]


def test_values_in_another_order_are_another_key() -> None:
    first, guard = SHAPES[0](3), owns_buckets(MAP, [4])
    shape = guarded_shape(first, guard, with_guard(first, guard))
    assert shape is not None
    turned = replace(shape, order=shape.order[::-1])

    guarded = with_guard_of(first, guard, turned)

    assert keys_of(guarded) != keys_of(with_guard(first, guard))


def test_a_guard_of_another_shape_is_added_the_long_way() -> None:
    first, guard = SHAPES[0](3), owns_buckets(MAP, [4])
    shape = guarded_shape(first, guard, with_guard(first, guard))
    several = owns_buckets(MAP, [4, 6])

    assert keys_of(with_guard_of(first, several, shape)) == keys_of(with_guard(first, several))
