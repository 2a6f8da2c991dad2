"""An answer merged from four shards is what one database says about all rows, or is refused."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, fill, sharded_shop, whole_shop

pytestmark = pytest.mark.postgres

WIDE = Context(prec=60)
NAN = float("nan")
# On this night in Berlin 02:30 comes twice.
AUTUMN = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)

TEXTS = ["", "a", "B", "b", "ä", "Z", "z z", "😀", "\uffff"]


def shop_of(seed: int, size: int) -> list[dict[str, Any]]:
    """Rows with many NULLs, ties and values that compare in peculiar ways.

    Drawn from one seed: rows drawn one by one would be few, and few find no mistakes.
    """
    random = Random(seed)  # noqa: S311 -- test data

    def one(*values: Any) -> Any:  # noqa: ANN401 -- values of any column
        return random.choice([None, *values])

    return [
        {
            "household_id": random.randint(1, 40),
            "id": number,
            "cents": one(*range(-3, 4)),
            "big": one(random.randint(-(2**60), 2**60)),
            "store": one(*TEXTS),
            "code": one(*TEXTS),
            "price": one(Decimal(random.randint(-900, 900)) / 100, Decimal("NaN"), Decimal(1)),
            "ratio": one(
                Decimal(random.randint(-(10**35), 10**35)).scaleb(-15, WIDE),
                Decimal(random.randint(0, 90)) / 10,
                Decimal(7),
            ),
            "weight": one(-1.5, 0.0, 0.1, NAN, float("inf"), float("-inf")),
            "paid": one(True, False),
            "day": one(*(date(2024, 1, day) for day in range(1, 9))),
            "at": one(AUTUMN, AUTUMN.replace(hour=1), AUTUMN.astimezone(ZoneInfo("Europe/Berlin"))),
            "ref": one(UUID(int=random.getrandbits(128)), UUID(int=1)),
        }
        for number in range(size)
    ]


shops_of_rows = st.builds(shop_of, st.integers(0, 2**32), st.sampled_from([40, 40, 40, 12, 3, 0]))

COLUMNS: list[Any] = [
    Basket.cents,
    Basket.big,
    Basket.store,
    Basket.code,
    Basket.price,
    Basket.weight,
    Basket.paid,
    Basket.day,
    Basket.at,
    Basket.ref,
    Basket.household_id,
    Basket.cents % 2,
]
SORTABLE: list[Any] = [
    *(column for column in COLUMNS if column is not Basket.store),
    Basket.store.collate("C"),
]
AGGREGATES: list[Any] = [
    func.count(), func.count(Basket.store), func.sum(Basket.cents), func.sum(Basket.big),
    func.sum(Basket.price), func.sum(Basket.ratio), func.min(Basket.cents),
    func.max(Basket.price), func.min(Basket.weight), func.max(Basket.weight),
    func.max(Basket.at), func.min(Basket.day), func.bool_and(Basket.paid),
    func.bool_or(Basket.paid), func.avg(Basket.cents), func.avg(Basket.big),
    func.avg(Basket.price), func.avg(Basket.ratio),
    func.sum(Basket.cents).filter(Basket.paid.is_(True)),
    func.avg(Basket.ratio).filter(Basket.cents > 0),
    # Not to be had exactly, so to be refused.
    func.sum(Basket.weight), func.avg(Basket.weight), func.max(Basket.store),
    func.count(Basket.cents.distinct()), func.array_agg(Basket.cents), func.sum(Basket.cents) + 1,
]  # fmt: skip
WHERES: list[Any] = [
    Basket.cents > 0, Basket.store.is_not(None), Basket.household_id.in_([1, 2, 3, 5, 8, 13]),
    Basket.household_id == 7, Basket.household_id.in_([]), Basket.price < 5,
]  # fmt: skip


@pytest.fixture(scope="module")
def shops(databases: Databases) -> Iterator[tuple[ShardCluster, Engine]]:
    urls = [databases.new() for _ in range(5)]
    with sharded_shop(urls[1:]) as cluster, whole_shop(urls[0]) as whole:
        yield cluster, whole
    for url in urls:
        databases.drop(url)


@st.composite
def directions(draw: st.DrawFn, columns: list[Any]) -> list[Any]:
    chosen = draw(st.lists(st.sampled_from(columns), max_size=3))
    directed = [draw(st.sampled_from([column, column.asc(), column.desc()])) for column in chosen]
    nulls = [None, "nulls_first", "nulls_last"]
    return [
        column if how is None else getattr(column, how)()
        for column, how in zip(
            directed,
            draw(st.lists(st.sampled_from(nulls), min_size=len(directed), max_size=len(directed))),
            strict=True,
        )
    ]


@st.composite
def row_statements(draw: st.DrawFn) -> Select[*tuple[Any, ...]]:
    """Rows in a total order, a page of them; or all distinct ones."""
    selected = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique_by=id))
    found = select(*(column.label(f"c{i}") for i, column in enumerate(selected)))
    found = found.where(*draw(st.lists(st.sampled_from(WHERES), max_size=1)))
    if draw(st.booleans()):
        return found.distinct()
    order = [*draw(directions(SORTABLE)), Basket.id]
    limit, offset = draw(st.none() | st.integers(0, 9)), draw(st.none() | st.integers(0, 9))
    return found.order_by(*order).limit(limit).offset(offset)


@st.composite
def group_statements(draw: st.DrawFn) -> Select[*tuple[Any, ...]]:
    groups = draw(st.lists(st.sampled_from(COLUMNS), max_size=2, unique_by=id))
    aggregates = draw(st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=3, unique_by=id))
    found = select(*groups, *aggregates).group_by(*groups).select_from(Basket)
    return found.where(*draw(st.lists(st.sampled_from(WHERES), max_size=1)))


def answers(
    shops: tuple[ShardCluster, Engine],
    data: list[dict[str, Any]],
    statement: Select[*tuple[Any, ...]],
) -> tuple[list[str], list[str]] | None:
    """What the cluster says and what one database says; None if the cluster refuses."""
    cluster, whole = shops
    fill(cluster, whole, data)
    with cluster.session(scatter=True) as session:
        try:
            found = session.execute(statement).all()
        except UnmergeableQueryError as refusal:
            event(refusal.clause)
            return None
    event("answered")
    with Session(whole) as session:
        expected = session.execute(statement).all()
    # By their text: NaN does not equal itself, and 1.0 would equal 1.00.
    return [repr(tuple(row)) for row in found], [repr(tuple(row)) for row in expected]


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=shops_of_rows, statement=row_statements())
def test_rows_come_as_from_one_database(
    shops: tuple[ShardCluster, Engine],
    data: list[dict[str, Any]],
    statement: Select[*tuple[Any, ...]],
) -> None:
    if (both := answers(shops, data, statement)) is not None:
        found, expected = both
        if statement._distinct:  # noqa: SLF001 -- SQL leaves the order open then
            found, expected = sorted(found), sorted(expected)
        assert found == expected


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=shops_of_rows, statement=group_statements())
def test_groups_come_as_from_one_database(
    shops: tuple[ShardCluster, Engine],
    data: list[dict[str, Any]],
    statement: Select[*tuple[Any, ...]],
) -> None:
    if (both := answers(shops, data, statement)) is not None:
        found, expected = both
        assert Counter(found) == Counter(expected)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=shops_of_rows, descending=st.booleans(), limit=st.none() | st.integers(0, 4))
def test_the_first_groups_by_an_aggregate_are_the_first_of_all(
    shops: tuple[ShardCluster, Engine],
    data: list[dict[str, Any]],
    *,
    descending: bool,
    limit: int | None,
) -> None:
    total = func.sum(Basket.cents)
    statement = (
        select(Basket.day, total, func.count().label("n"))
        .group_by(Basket.day)
        .order_by(total.desc() if descending else total, "n", Basket.day)
        .limit(limit)
    )

    both = answers(shops, data, statement)

    assert both is not None
    assert both[0] == both[1]
