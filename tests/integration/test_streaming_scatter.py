"""Rows of all shards in one order, however many: merged while they are read."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import URL, Engine, Select, func, select, text
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from datapatterns.errors import MergeLimitError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import (
    Basket,
    create_tables,
    fill,
    households,
    named,
    whole_shop,
)

pytestmark = pytest.mark.postgres

BASKETS = 120
ROWS: list[dict[str, Any]] = [
    {
        "household_id": number % 40,
        "id": number,
        "cents": None if number % 5 == 0 else number % 7,
        "code": "aBbä"[number % 4],
        "store": "aBbä"[number % 4],
        "weight": float("nan") if number % 11 == 0 else number / 3,
    }
    for number in range(BASKETS)
]


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(5)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shops(urls: list[URL]) -> Iterator[tuple[ShardCluster, Engine]]:
    """A cluster that merges ten rows in memory at most."""
    for url in urls[1:]:
        create_tables(url)
    cluster = ShardCluster(
        control=urls[1], shards=named(urls[1:]), groups=[households], merge_rows_max=10
    )
    with cluster, whole_shop(urls[0]) as whole:
        cluster.create_map()
        fill(cluster, whole, ROWS)
        yield cluster, whole


@pytest.fixture
def session(shops: tuple[ShardCluster, Engine]) -> Iterator[Session]:
    with shops[0].session(scatter=True) as session:
        yield session


STATEMENTS: dict[str, Select[*tuple[Any, ...]]] = {
    "ascending": select(Basket.id, Basket.cents).order_by(Basket.id),
    "with NULLs and ties": select(Basket.id).order_by(Basket.cents.desc(), Basket.id),
    "mixed": select(Basket.id).order_by(
        Basket.code, Basket.cents.asc().nulls_first(), Basket.id.desc()
    ),
    "not a number": select(Basket.weight, Basket.id).order_by(Basket.weight.desc(), Basket.id),
    "a page": select(Basket.id).order_by(Basket.id).limit(50).offset(33),
    "nothing": select(Basket.id).order_by(Basket.id).where(Basket.id < 0),
}


@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS.keys())
def test_streamed_rows_come_as_from_one_database(
    shops: tuple[ShardCluster, Engine], statement: Select[*tuple[Any, ...]], size: int
) -> None:
    cluster, whole = shops
    with cluster.session(scatter=True) as session:
        found = session.execute(statement, execution_options={"yield_per": size})
        rows = [repr(tuple(row)) for row in found]

    with Session(whole) as session:
        assert rows == [repr(tuple(row)) for row in session.execute(statement)]


def test_entities_are_streamed_into_their_session(session: Session) -> None:
    statement = select(Basket).order_by(Basket.id.desc())

    found = session.scalars(statement.execution_options(yield_per=5)).all()

    assert [basket.id for basket in found] == [*reversed(range(BASKETS))]
    assert found[0] is session.get(Basket, (found[0].household_id, found[0].id))


def test_all_rows_come_in_no_order(session: Session) -> None:
    found = session.scalars(select(Basket.id), execution_options={"yield_per": 5}).all()

    assert sorted(found) == [*range(BASKETS)]


def test_who_has_read_enough_leaves_no_cursor_behind(session: Session) -> None:
    statement = select(Basket.id).order_by(Basket.id)
    found = session.scalars(statement, execution_options={"yield_per": 2})

    assert [*islice(found, 3)] == [0, 1, 2]
    found.close()

    open_cursors = text("SELECT count(*) FROM pg_cursors")
    for shard in ("s0", "s1", "s2", "s3"):
        conn = session.connection(bind_arguments={"shard_id": shard})
        assert conn.scalar(open_cursors) == 0


def test_cursors_of_the_others_are_closed_if_one_shard_fails(session: Session) -> None:
    failing = select(1 / (Basket.id - 119)).order_by(Basket.id)

    with pytest.raises(DataError, match="division"):
        session.execute(failing, execution_options={"yield_per": 1_000})


def test_a_result_that_nobody_reads_can_be_closed(session: Session) -> None:
    session.execute(select(Basket.id), execution_options={"yield_per": 3}).close()


def test_what_cannot_be_merged_while_it_comes_is_bounded_as_ever(session: Session) -> None:
    streaming: dict[str, Any] = {"yield_per": 5}

    with pytest.raises(MergeLimitError):
        session.execute(select(Basket.id).distinct(), execution_options=streaming)
    with pytest.raises(MergeLimitError):
        session.execute(select(Basket.id).order_by(Basket.id))
    count = select(Basket.cents, func.count()).group_by(Basket.cents).order_by(Basket.cents)
    few = count.where(Basket.id < 8)
    assert len(session.execute(few.limit(2), execution_options=streaming).all()) == 2
