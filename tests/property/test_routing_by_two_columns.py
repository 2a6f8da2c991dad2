"""What is routed by a key of two columns finds what it would find in one database.

Random conditions and joins, among them many that name one column only, or tie one only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    ColumnElement,
    Engine,
    Select,
    and_,
    delete,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import aliased

from datapatterns.sharding import (
    Composite,
    EntityGroup,
    Hash,
    ListMap,
    Modulo,
    Range,
    ShardCluster,
)
from datapatterns.testing import Databases
from tests.fixtures.effort import dear
from tests.fixtures.regional_model import Invoice, Item, fill, regional_shop, tenants, whole_shop
from tests.fixtures.routed_statements import assert_same_rows_or_refused, combined

pytestmark = pytest.mark.postgres

OTHER = aliased(Invoice)
THIRD = aliased(Item)
REGIONS = ["eu", "us", "Us"]

STRATEGIES = [
    Composite(ListMap({"eu": 0, "us": 1}, default=1), Hash(buckets=4)),
    Composite(Hash(buckets=4), Range([2, 4])),
    Composite(Range(["f"]), Modulo(5)),
]


@pytest.fixture(scope="module", params=STRATEGIES, ids=lambda each: each.prefix.kind)
def shops(
    databases: Databases, request: pytest.FixtureRequest
) -> Iterator[tuple[ShardCluster, Engine]]:
    rows = [
        {"region": region, "tenant_id": tenant, "id": number, "cents": (tenant * 7 + number) % 5}
        for region in REGIONS
        for tenant in range(6)
        for number in range(1 + tenant % 3)
    ]
    urls = [databases.new() for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        # The models are declared once; where their rows lie is what varies.
        patch.setattr(EntityGroup, "__setattr__", object.__setattr__)
        patch.setattr(tenants, "strategy", request.param)
        with regional_shop(urls[1:]) as cluster, whole_shop(urls[0]) as whole:
            fill(cluster, whole, rows)
            yield cluster, whole
    for url in urls:
        databases.drop(url)


regions = st.sampled_from([*REGIONS, "xx"])
numbers = st.integers(0, 6)
keys = st.tuples(regions, numbers)


def comparisons(uses: Sequence[Any]) -> st.SearchStrategy[ColumnElement[bool]]:
    """Compare the keys of some uses of tables, in whole, in part, or hardly."""

    def compare(
        use: Any,  # noqa: ANN401 -- a class or an alias
        other: Any,  # noqa: ANN401 -- as above
        key: tuple[str, int],
        listed: list[tuple[str, int]],
    ) -> list[ColumnElement[bool]]:
        region, number = key
        return [
            and_(use.area == region, use.tenant == number),
            use.area == region,
            literal(number) == use.tenant,
            and_(use.area == region, other.tenant == number),
            tuple_(use.area, use.tenant).in_(listed),
            tuple_(use.tenant, use.area).in_([(n, r) for r, n in listed]),
            tuple_(use.area, other.tenant).in_(listed),
            tuple_(use.tenant, use.number).in_([(number, 0), (number, 1)]),
            and_(use.area.in_([r for r, _ in listed]), use.tenant.in_([n for _, n in listed])),
            and_(use.area == region, use.tenant > number),
            and_(use.area < region, use.tenant == number),
            use.area.between("eu", region),
            and_(use.area == region, use.tenant.between(number, number + 1)),
            use.tenant != number,
            use.area == other.area,
            use.tenant == other.tenant,
            use.tenant.is_(None),
            tuple_(use.area, use.tenant).not_in(listed),
        ]

    use = st.sampled_from(uses)
    return st.builds(compare, use, use, keys, st.lists(keys, max_size=3)).flatmap(st.sampled_from)


def conditions(uses: Sequence[Any]) -> st.SearchStrategy[ColumnElement[bool]]:
    return combined(comparisons(uses))


def matches(left: Any, right: Any) -> st.SearchStrategy[ColumnElement[bool]]:  # noqa: ANN401 -- classes or aliases
    """What to join by: the whole key, a part of it, or something that resembles it."""
    both = [left.area == right.area, left.tenant == right.tenant]
    return st.sampled_from(
        [
            and_(*both, left.number == right.number),
            and_(*both),
            both[0],
            and_(both[1], left.number == right.number),
            and_(both[1], left.area == "eu"),
            and_(both[1], left.area == "eu", right.area == "eu"),
            and_(both[0], left.tenant == 2, right.tenant == 2),
            or_(*both),
        ]
    )


@st.composite
def statements(draw: st.DrawFn) -> Select[*tuple[Any, ...]]:
    """Ask for invoices, alone or joined in some way, under some conditions."""
    shape = draw(st.sampled_from(["alone", "alone", "comma", "join", "chain", "groups", "union"]))
    uses: list[Any] = [Invoice]
    found: Select[*tuple[Any, ...]] = select(Invoice.region, Invoice.tenant_id, Invoice.id)
    if shape == "groups":
        by: list[Any] = draw(
            st.sampled_from(
                [
                    [Invoice.region],
                    [Invoice.tenant_id],
                    [Invoice.tenant_id, Invoice.region],
                    [Invoice.id],
                ]
            )
        )
        found = select(*by, func.count(), func.avg(Invoice.cents)).group_by(*by)
        if draw(st.booleans()):
            found = found.having(func.count() > 1)
    elif shape == "comma":
        uses.append(OTHER)
        found = found.add_columns(OTHER.id).where(draw(matches(OTHER, Invoice)))
    elif shape in ("join", "chain"):
        uses.append(OTHER)
        on = draw(matches(OTHER, Invoice))
        found = found.add_columns(OTHER.id).join(OTHER, on, isouter=draw(st.booleans()))
    if shape == "chain":
        uses.append(THIRD)
        on = and_(
            *draw(
                st.lists(
                    st.one_of(matches(THIRD, OTHER), matches(THIRD, Invoice)),
                    min_size=1,
                    max_size=2,
                )
            )
        )
        found = found.add_columns(THIRD.place).join(THIRD, on, isouter=draw(st.booleans()))
    found = found.where(*draw(st.lists(conditions(uses), max_size=2)))
    if shape == "union":
        again = select(Invoice.region, Invoice.tenant_id, Invoice.id)
        return select(found.union_all(again.where(draw(conditions([Invoice])))).subquery())
    return found


@dear
@given(statement=statements(), scatter=st.sampled_from([False, True]))
def test_an_answer_is_that_of_one_database(
    shops: tuple[ShardCluster, Engine], statement: Select[*tuple[Any, ...]], *, scatter: bool
) -> None:
    cluster, whole = shops
    assert_same_rows_or_refused(cluster.session(scatter=scatter), whole, statement)


@dear
@given(
    condition=conditions([Item]),
    kind=st.sampled_from(["update", "delete"]),
    atomic=st.sampled_from([False, True]),
)
def test_a_change_touches_the_rows_that_one_database_would(
    shops: tuple[ShardCluster, Engine], condition: ColumnElement[bool], kind: str, *, atomic: bool
) -> None:
    cluster, whole = shops
    change = update(Item).values(quantity=9) if kind == "update" else delete(Item)
    change = change.where(condition).returning(Item.area, Item.tenant, Item.number)
    assert_same_rows_or_refused(cluster.session(atomic=atomic), whole, change)
