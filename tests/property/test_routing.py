"""A statement that is routed by its shard key finds what it would find in one database.

Random conditions and joins, among them many that only look as if they named a key.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    Select,
    and_,
    delete,
    literal,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session, aliased

from datapatterns.sharding import (
    Directory,
    EntityGroup,
    ListMap,
    Range,
    ShardCluster,
    ShardingStrategy,
)
from datapatterns.testing import Databases
from tests.fixtures.effort import dear
from tests.fixtures.routed_statements import assert_same_rows_or_refused, combined
from tests.fixtures.shard_model import Basket, Line, fill, households, sharded_shop, whole_shop

pytestmark = pytest.mark.postgres

HOUSEHOLDS = range(12)
OTHER = aliased(Basket)
THIRD = aliased(Line)


STRATEGIES: list[ShardingStrategy] = [
    households.strategy,
    Range([3, 6, 9]),
    ListMap({0: 0, 1: 0, 2: 1, 5: 2}, default=3),
    Directory(Range([6]), {2: 2, 3: 3}),
]


@pytest.fixture(scope="module", params=STRATEGIES, ids=lambda strategy: strategy.kind)
def shops(
    databases: Databases, request: pytest.FixtureRequest
) -> Iterator[tuple[ShardCluster, Engine]]:
    with pytest.MonkeyPatch.context() as patch:
        # The models are declared once; where their rows lie is what varies.
        patch.setattr(EntityGroup, "__setattr__", object.__setattr__)
        patch.setattr(households, "strategy", request.param)
        yield from filled_shops(databases)


def filled_shops(databases: Databases) -> Iterator[tuple[ShardCluster, Engine]]:
    urls = [databases.new() for _ in range(5)]
    rows = [
        {"household_id": household, "id": number, "cents": (household * 7 + number) % 5}
        for household in HOUSEHOLDS
        for number in range(1 + household % 3)
    ]
    with sharded_shop(urls[1:]) as cluster, whole_shop(urls[0]) as whole:
        fill(cluster, whole, rows)
        for row in rows[::2]:
            line = {
                "household_id": row["household_id"],
                "basket_id": row["id"],
                "number": row["cents"],
                "quantity": row["cents"] % 2,
            }
            with cluster.session() as sharded, sharded.begin():
                sharded.add(Line(**line))
            with Session(whole) as session, session.begin():
                session.add(Line(**line))
        yield cluster, whole
    for url in urls:
        databases.drop(url)


keys = st.sampled_from([*HOUSEHOLDS, 99])
keyed = keys.map(lambda key: Basket.household_id == key)


def comparisons(uses: Sequence[Any]) -> st.SearchStrategy[ColumnElement[bool]]:
    """Compare the keys of some uses of tables, in ways that name a key and ways that do not."""

    def compare(
        use: type[Basket], other: type[Basket], key: int, listed: list[int]
    ) -> list[ColumnElement[bool]]:
        return [
            use.household_id == key,
            literal(key) == use.household_id,
            use.household_id.in_(listed),
            tuple_(use.household_id, other.household_id).in_([(key, key), (key + 1, key)]),
            use.household_id.not_in(listed),
            use.household_id != key,
            use.household_id > key,
            literal(key) >= use.household_id,
            and_(use.household_id >= key, use.household_id < key + 2),
            use.household_id.between(key, key + 1),
            use.household_id.between(key + 2, key, symmetric=True),
            ~use.household_id.between(key, key + 4),
            use.household_id < literal(None, BigInteger),
            use.household_id + 0 == key,
            use.household_id.is_(None),
            use.household_id == other.household_id,
            use.household_id == null(),
            use.basket_number == key,
        ]

    use = st.sampled_from(uses)
    return st.builds(compare, use, use, keys, st.lists(keys, max_size=3)).flatmap(st.sampled_from)


def conditions(uses: Sequence[Any]) -> st.SearchStrategy[ColumnElement[bool]]:
    return combined(comparisons(uses))


def matches(
    left: type[Basket | Line], right: type[Basket | Line]
) -> st.SearchStrategy[ColumnElement[bool]]:
    """What to join by: with the key, or without, or with something that resembles it."""
    return st.sampled_from(
        [
            and_(
                left.household_id == right.household_id, left.basket_number == right.basket_number
            ),
            left.household_id == right.household_id,
            left.basket_number == right.basket_number,
            and_(left.basket_number == right.basket_number, left.household_id == 3),
            and_(left.basket_number == right.basket_number, right.household_id == 3),
            and_(left.household_id == right.household_id, left.household_id == 3),
            and_(left.household_id == right.household_id, right.household_id == 3),
            or_(left.household_id == right.household_id, right.household_id == 3),
        ]
    )


@st.composite
def statements(draw: st.DrawFn) -> Select[*tuple[Any, ...]]:
    """Ask for baskets, alone or joined in some way, under some conditions."""
    shape = draw(st.sampled_from(["alone", "comma", "join", "chain", "exists", "union"]))
    uses: list[Any] = [Basket]
    found: Select[*tuple[Any, ...]] = select(Basket.household_id, Basket.id)
    if shape == "comma":
        uses.append(OTHER)
        found = found.add_columns(OTHER.id).where(draw(matches(OTHER, Basket)))
    elif shape in ("join", "chain"):
        uses.append(OTHER)
        kind = draw(st.sampled_from([{}, {"isouter": True}, {"full": True}]))
        on = OTHER.household_id == Basket.household_id  # all that FULL JOIN can do
        if "full" not in kind:
            on = draw(matches(OTHER, Basket))
        found = found.add_columns(OTHER.id).join(OTHER, on, **kind)
    if shape == "chain":
        uses.append(THIRD)
        on = and_(
            *draw(
                st.lists(
                    st.one_of(matches(THIRD, OTHER), matches(THIRD, Basket)), min_size=1, max_size=2
                )
            )
        )
        found = found.add_columns(THIRD.number).join(THIRD, on, isouter=draw(st.booleans()))
    if shape == "exists":
        asked: Any = draw(st.sampled_from([Line, OTHER]))
        inner = select(asked.basket_number).where(draw(matches(asked, Basket)))
        inner = inner.where(*draw(st.lists(conditions([asked]), max_size=1)))
        found = found.where(inner.exists(), *draw(st.lists(keyed, max_size=1)))
    found = found.where(*draw(st.lists(conditions(uses), max_size=2)))
    if shape == "union":
        again = select(Basket.household_id, Basket.id).where(draw(conditions([Basket])))
        return select(found.union_all(again).subquery())
    return found


@dear
@given(statement=statements(), scatter=st.sampled_from([False, True]))
def test_a_routed_answer_is_that_of_one_database(
    shops: tuple[ShardCluster, Engine], statement: Select[*tuple[Any, ...]], *, scatter: bool
) -> None:
    cluster, whole = shops
    assert_same_rows_or_refused(cluster.session(scatter=scatter), whole, statement)


@dear
@given(condition=conditions([Line]), kind=st.sampled_from(["update", "delete"]))
def test_a_routed_change_touches_the_rows_that_one_database_would(
    shops: tuple[ShardCluster, Engine], condition: ColumnElement[bool], kind: str
) -> None:
    cluster, whole = shops
    change = update(Line).values(quantity=9) if kind == "update" else delete(Line)
    change = change.where(condition).returning(Line.household_id, Line.number)
    assert_same_rows_or_refused(cluster.session(), whole, change)
