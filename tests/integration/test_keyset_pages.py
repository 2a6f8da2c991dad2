from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session, aliased

from datapatterns.errors import PageCursorError, UnmergeableQueryError
from datapatterns.sharding import ShardCluster, keyset
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, Line, fill, households, sharded_shop, whole_shop

pytestmark = pytest.mark.postgres

BASKETS = 60


@pytest.fixture(scope="module")
def shops(databases: Databases) -> Iterator[tuple[ShardCluster, Engine]]:
    urls = [databases.new() for _ in range(5)]
    random = Random(5)  # noqa: S311 -- test data
    rows = [
        {
            "household_id": random.randint(1, 20),
            "id": number,
            "cents": number % 4,
            "store": random.choice("aBbä"),
            "at": datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=number),
        }
        for number in range(BASKETS)
    ]
    with sharded_shop(urls[1:]) as cluster, whole_shop(urls[0]) as whole:
        fill(cluster, whole, rows)
        yield cluster, whole
    for url in urls:
        databases.drop(url)


@pytest.fixture
def session(shops: tuple[ShardCluster, Engine]) -> Iterator[Session]:
    with shops[0].session(scatter=True) as session:
        yield session


def all_pages(
    session: Session, statement: Select[*tuple[Any, ...]], by: Sequence[Any], size: int
) -> list[list[Any]]:
    pages, after = [], None
    while True:
        page = keyset(statement, by=by, after=after, size=size).read(session)
        pages.append(page.scalars())
        after = page.next
        if after is None:
            return pages


HOUSEHOLD, ID = Basket.household_id, Basket.id


@pytest.mark.parametrize("size", [1, 7, 30, BASKETS, 100])
@pytest.mark.parametrize(
    "by",
    [[ID], [HOUSEHOLD, ID], [HOUSEHOLD.desc(), ID.desc()], [HOUSEHOLD.desc(), ID],
     [HOUSEHOLD.asc(), ID.desc()]],
)  # fmt: skip
def test_pages_are_the_rows_in_order(
    shops: tuple[ShardCluster, Engine], size: int, by: list[Any]
) -> None:
    cluster, whole = shops
    with Session(whole) as plain:
        expected = plain.scalars(select(ID).order_by(*by)).all()
        of_one = all_pages(plain, select(ID), by, size)
    with cluster.session(scatter=True) as session:
        of_shards = all_pages(session, select(ID), by, size)

    assert [id_ for page in of_shards for id_ in page] == expected
    assert of_shards == of_one
    assert {len(page) for page in of_shards[:-1]} <= {size}


def test_pages_hold_entities_and_rows_that_are_known_by_their_columns(session: Session) -> None:
    page = keyset(select(Basket, Basket.cents.label("c")), by=[ID], size=2).read(session)

    assert [(row.Basket.id, row.c) for row in page.rows] == [(0, 0), (1, 1)]
    assert len(page.rows[0]) == 2
    assert page.scalars()[0] is session.get(Basket, (page.rows[0].Basket.household_id, 0))


def test_pages_of_one_key_come_from_its_shard(shops: tuple[ShardCluster, Engine]) -> None:
    cluster, whole = shops
    mine = select(ID).where(HOUSEHOLD == 7)
    with Session(whole) as plain:
        expected = plain.scalars(mine.order_by(ID)).all()
    with cluster.session() as session:
        found = all_pages(session, mine, [ID], 2)
    with cluster.on(households, household_id=7) as pinned:
        there = all_pages(pinned, select(ID), [ID], 2)

    assert [id_ for page in found for id_ in page] == expected
    assert there == found


def test_a_row_that_appears_is_on_the_page_where_it_belongs(session: Session) -> None:
    first = keyset(select(ID), by=[HOUSEHOLD, ID], size=5).read(session)
    session.add(Basket(household_id=10, id=1000))

    rest = []
    after = first.next
    while after is not None:
        page = keyset(select(ID), by=[HOUSEHOLD, ID], after=after, size=5).read(session)
        rest += page.scalars()
        after = page.next

    assert 1000 in rest
    assert len(first.scalars() + rest) == BASKETS + 1


@pytest.mark.parametrize(
    "by",
    [[], [Basket.at], [Basket.at, ID], [ID + 1], [func.lower(Basket.store)]],
)
def test_pages_are_ordered_by_columns_that_are_never_null(by: list[Any]) -> None:
    with pytest.raises(PageCursorError):
        keyset(select(ID), by=by, size=5)


@pytest.mark.parametrize("written", ["orm", "core"])
def test_pages_are_not_ordered_by_what_an_outer_join_leaves_out(
    session: Session, written: str
) -> None:
    """Its rows would compare with nothing, and be on no page but the first."""
    line = aliased(Line)
    statements: dict[str, Select[*tuple[Any, ...]]] = {
        "orm": select(ID, Line.number).outerjoin(Basket.lines),
        "core": select(ID, line.number).outerjoin(
            line, (line.household_id == HOUSEHOLD) & (line.basket_id == ID)
        ),
    }
    number = Line.number if written == "orm" else line.number

    with pytest.raises(PageCursorError, match="outer join"):
        keyset(statements[written], by=[ID, number], size=5)
    assert keyset(statements[written], by=[ID], size=5).read(session).next is not None


def test_rows_that_agree_in_the_order_are_not_lost_between_pages(session: Session) -> None:
    with pytest.raises(PageCursorError, match="several rows agree"):
        all_pages(session, select(ID), [HOUSEHOLD], 1)


@pytest.mark.parametrize(
    "statement",
    [
        select(ID).order_by(ID), select(ID).limit(3), select(ID).offset(1), select(ID).distinct(),
        select(HOUSEHOLD, func.count()).group_by(HOUSEHOLD),
    ],
)  # fmt: skip
def test_a_page_sets_its_own_bounds(statement: Select[*tuple[Any, ...]]) -> None:
    with pytest.raises(UnmergeableQueryError, match="of a page"):
        keyset(statement, by=[ID], size=3)


def test_a_page_has_rows() -> None:
    with pytest.raises(ValueError, match="size"):
        keyset(select(ID), by=[ID], size=0)


def test_a_cursor_of_other_pages_is_refused(session: Session) -> None:
    cursor = keyset(select(ID), by=[HOUSEHOLD, ID], size=3).read(session).next

    for by in ([ID, HOUSEHOLD], [HOUSEHOLD.desc(), ID], [ID]):
        with pytest.raises(PageCursorError, match="another order"):
            keyset(select(ID), by=by, after=cursor, size=3)


def test_an_offset_that_lies_too_deep_is_shown_the_way(session: Session) -> None:
    with pytest.raises(UnmergeableQueryError, match="keyset"):
        session.execute(select(ID).order_by(ID).limit(1).offset(20_000))
