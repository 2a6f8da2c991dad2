"""Every strategy places a key in the bucket whose condition it satisfies in SQL, and only there."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Connection, Text, Uuid, column, select, values
from sqlalchemy.types import TypeEngine

from datapatterns.errors import UnroutableKeyError
from datapatterns.sharding import (
    Composite,
    Directory,
    Hash,
    KeyPart,
    ListMap,
    Modulo,
    Range,
    ShardingStrategy,
)

pytestmark = pytest.mark.postgres
# `conn` serves all examples: they only ask it questions.
asks_the_server = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

TYPES: dict[type, TypeEngine[Any]] = {int: BigInteger(), str: Text(), UUID: Uuid()}
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
few_texts = st.text("aBbÄ🥐", max_size=2)
bigints = st.integers(-(2**63), 2**63 - 1)
KINDS: list[st.SearchStrategy[Any]] = [
    st.integers(-5, 5) | bigints,
    few_texts | texts,
    st.uuids() | st.integers(0, 3).map(lambda n: UUID(int=n)),
]
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda key, value: key < value,
    "<=": lambda key, value: key <= value,
    ">": lambda key, value: key > value,
    ">=": lambda key, value: key >= value,
    "=": lambda key, value: key == value,
}


@st.composite
def ranges(draw: st.DrawFn, keys: st.SearchStrategy[KeyPart]) -> Range:
    bounds = sorted(draw(st.lists(keys, max_size=5, unique=True)))
    found = Range(bounds[::2])
    for bound in bounds[1::2]:
        found = found.split(bound)
    return found


def plain(
    keys: st.SearchStrategy[KeyPart], *, numbers: bool
) -> st.SearchStrategy[ShardingStrategy]:
    listed = st.dictionaries(keys, st.integers(0, 3), min_size=1, max_size=5)
    some: list[st.SearchStrategy[Any]] = [
        st.integers(0, 4).map(lambda bits: Hash(buckets=2**bits)),
        ranges(keys),
        st.builds(ListMap, listed, st.none() | st.integers(0, 4)),
    ]
    return st.one_of(*some, *([st.integers(1, 7).map(Modulo)] if numbers else []))


def strategies(kind: int) -> st.SearchStrategy[ShardingStrategy]:
    keys = KINDS[kind]
    simple = plain(keys, numbers=kind == 0)
    assigned = st.dictionaries(keys, st.integers(0, 9), max_size=4)
    return st.one_of(simple, st.builds(Directory, simple, assigned))


cases = st.integers(0, 2).flatmap(
    lambda kind: st.tuples(strategies(kind), st.lists(KINDS[kind], min_size=1, max_size=8))
)


def place(strategy: ShardingStrategy | Composite, key: Any) -> int | None:  # noqa: ANN401
    try:
        return strategy.bucket(key)
    except UnroutableKeyError:
        return None


@asks_the_server
@given(case=cases)
def test_a_key_satisfies_the_condition_of_its_bucket_alone(
    conn: Connection, case: tuple[ShardingStrategy, list[KeyPart]]
) -> None:
    strategy, keys = case
    given_keys = values(column("key", TYPES[type(keys[0])]), name="given").data(
        [(key,) for key in keys]
    )
    conditions = [
        strategy.predicate(given_keys.c.key, bucket).label(f"in_{bucket}")
        for bucket in range(strategy.buckets)
    ]

    rows = conn.execute(
        select(given_keys.c.key, strategy.bucket_of(given_keys.c.key), *conditions)
    ).all()

    for key, bucket, *satisfied in rows:
        assert bucket == place(strategy, key)
        assert [number for number, holds in enumerate(satisfied) if holds] == (
            [] if bucket is None else [bucket]
        )


@given(case=cases, data=st.data())
def test_no_key_that_satisfies_a_comparison_lies_elsewhere(
    case: tuple[ShardingStrategy, list[KeyPart]], data: st.DataObject
) -> None:
    strategy, keys = case
    operator: Any = data.draw(st.sampled_from([*COMPARISONS, "between", "in"]))
    value: Any = data.draw(st.sampled_from(keys))
    if operator == "between":
        value = (value, data.draw(st.sampled_from(keys)))
        satisfying = [key for key in keys if value[0] <= key <= value[1]]
    elif operator == "in":
        value = satisfying = data.draw(st.lists(st.sampled_from(keys), max_size=3))
    else:
        satisfying = [key for key in keys if COMPARISONS[operator](key, value)]

    try:
        found = strategy.buckets_for(operator, value)
    except UnroutableKeyError:
        assert None in map(lambda key: place(strategy, key), satisfying)  # noqa: C417
        return

    if found is not None:
        assert {place(strategy, key) for key in satisfying} - {None} <= found


@asks_the_server
@given(
    prefix=plain(KINDS[1], numbers=False),
    within=plain(KINDS[0], numbers=True),
    keys=st.lists(st.tuples(KINDS[1], KINDS[0]), min_size=1, max_size=4),
)
def test_keys_of_two_parts_satisfy_the_condition_of_their_bucket_alone(
    conn: Connection,
    prefix: ShardingStrategy,
    within: ShardingStrategy,
    keys: list[tuple[KeyPart, KeyPart]],
) -> None:
    strategy = Composite(prefix, within)
    given_keys = values(column("first", Text()), column("second", BigInteger()), name="given").data(
        keys
    )
    columns = (given_keys.c.first, given_keys.c.second)
    conditions = [strategy.predicate(columns, bucket) for bucket in range(strategy.buckets)]

    rows = conn.execute(select(*columns, strategy.bucket_of(columns), *conditions)).all()

    for first, second, bucket, *satisfied in rows:
        assert bucket == place(strategy, (first, second))
        assert sum(map(bool, satisfied)) == (bucket is not None)
        assert bucket is None or satisfied[bucket]
        if bucket is not None:
            assert bucket in (strategy.buckets_for_prefix("=", first) or {bucket})


@given(
    prefix=plain(KINDS[1], numbers=False),
    within=plain(KINDS[0], numbers=True),
    keys=st.lists(st.tuples(KINDS[1], KINDS[0]), min_size=1, max_size=6),
    operators=st.tuples(st.sampled_from([*COMPARISONS]), st.sampled_from([*COMPARISONS])),
    data=st.data(),
)
def test_no_key_of_two_parts_that_satisfies_comparisons_of_each_lies_elsewhere(
    prefix: ShardingStrategy,
    within: ShardingStrategy,
    keys: list[tuple[KeyPart, KeyPart]],
    operators: tuple[Any, Any],
    data: st.DataObject,
) -> None:
    strategy = Composite(prefix, within)
    first, second = data.draw(st.sampled_from(keys))
    satisfying = [
        key
        for key in keys
        if COMPARISONS[operators[0]](key[0], first) and COMPARISONS[operators[1]](key[1], second)
    ]

    try:
        blocks = prefix.buckets_for(operators[0], first)
        places = within.buckets_for(operators[1], second)
        whole = strategy.buckets_for("in", satisfying)
    except UnroutableKeyError:
        return

    found = {place(strategy, key) for key in satisfying} - {None}
    assert whole is not None
    assert {*whole, None} == {*found, None}
    confined = strategy.buckets_of_places(blocks, places)
    assert confined is None or found <= confined
