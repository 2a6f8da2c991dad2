"""Parameters that compute their value say where to read and what to read in one breath."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    BindParameter,
    bindparam,
    delete,
    insert,
    select,
    text,
    union,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased, selectinload, with_loader_criteria, with_parent

from datapatterns.errors import ShardKeyError, UnroutableStatementError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, Line, households, sharded_shop

pytestmark = pytest.mark.postgres

BASKETS: Any = Basket.__table__
LINES: Any = Line.__table__
OTHERS = BASKETS.alias()
ANOTHER = aliased(Basket)
NEW = 77


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with sharded_shop(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> Iterator[ShardCluster]:
    with shop.session(atomic=True) as session, session.begin():
        for key in range(10):
            session.add(Basket(household_id=key, id=1, cents=key))
            session.flush()
            session.add(Line(household_id=key, basket_id=1, number=1))
    yield shop
    for engine in shop.engines.values():
        with engine.begin() as conn:
            conn.execute(text("TRUNCATE basket, line"))


class Changing:
    """Says a key, then one of another shard, and so on by turns."""

    def __init__(self, cluster: ShardCluster) -> None:
        shard_of = cluster.router.map_of(households).shard_of
        self.keys = (0, next(key for key in range(10) if shard_of(key) != shard_of(0)))
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.keys[self.asked % 2]

    @property
    def said(self) -> int:
        return self.keys[self.asked % 2]


Key = Callable[[], BindParameter[Any]]

READS: list[Callable[[Key], Any]] = [
    lambda key: select(Basket.household_id).where(Basket.household_id == key()),
    lambda key: select(BASKETS.c.household_id).where(BASKETS.c.household_id == key()),
    lambda key: select(OTHERS.c.household_id).where(key() == OTHERS.c.household_id),
    lambda key: (
        select(ANOTHER).where(ANOTHER.household_id == key()).options(selectinload(ANOTHER.lines))
    ),
    lambda key: select(
        select(Basket.household_id).where(Basket.household_id == key()).subquery().c.household_id
    ),
    lambda key: select(
        select(BASKETS.c.household_id).where(BASKETS.c.household_id == key()).cte().c.household_id
    ),
    lambda key: twice(key()),
]


def twice(key: BindParameter[Any]) -> Any:  # noqa: ANN401 -- a UNION
    return union(
        select(Basket.household_id).where(Basket.household_id == key),
        select(ANOTHER.household_id).where(ANOTHER.household_id == key),
    )


@pytest.mark.parametrize("read", READS)
def test_what_is_read_is_what_the_route_was_found_by(
    cluster: ShardCluster, read: Callable[[Key], Any]
) -> None:
    said = Changing(cluster)
    # The same one each time, and the last ones of a shape that is known.
    statement = read(lambda: bindparam(None, callable_=said, type_=BigInteger))
    for _ in range(4):
        with cluster.session() as session:
            (found,) = session.scalars(statement)
            assert getattr(found, "household_id", found) == said.said


@pytest.mark.parametrize("named", [False, True])
def test_what_is_written_is_what_the_route_was_found_by(
    cluster: ShardCluster,
    named: bool,  # noqa: FBT001 -- a case
) -> None:
    said = Changing(cluster)
    name = "one" if named else None

    def key() -> BindParameter[Any]:
        return bindparam(name, callable_=said, type_=BigInteger)

    def count(session: Session, *conditions: Any) -> int:  # noqa: ANN401 -- any condition
        counted = select(Basket.household_id).where(*conditions)
        return len(session.scalars(counted, execution_options={"scatter": True}).all())

    for _ in range(4):
        for target in (Basket, BASKETS):
            with cluster.session() as session:
                changed: Any = session.execute(
                    update(target).where(BASKETS.c.household_id == key()).values(cents=NEW)
                )
                assert changed.rowcount == 1
                assert count(session, Basket.household_id == said.said, Basket.cents == NEW) == 1
        with cluster.session() as session:
            gone: Any = session.execute(delete(Line).where(Line.household_id == key()))
            assert gone.rowcount == 1
        for inserted in (
            insert(Basket).values(household_id=key(), id=NEW),
            insert(BASKETS).values(household_id=key(), id=NEW),
            upsert(Basket)
            .values(household_id=key(), id=NEW)
            .on_conflict_do_update(index_elements=["household_id", "id"], set_={"cents": 1}),
        ):
            with cluster.session() as session:
                session.execute(inserted)
                assert count(session, Basket.household_id == said.said, Basket.id == NEW) == 1
                mine = select(Basket).where(Basket.household_id == said.said, Basket.id == NEW)
                assert session.scalars(mine).one().household_id == said.said


def test_a_value_that_is_passed_prevails(cluster: ShardCluster) -> None:
    said = Changing(cluster)
    mine = select(Basket.household_id).where(
        Basket.household_id == bindparam("key", callable_=said, type_=BigInteger)
    )
    with cluster.session() as session:
        for key in range(10):
            assert session.scalars(mine, {"key": key}).all() == [key]


def test_a_limit_is_the_same_on_all_shards_and_for_the_merged_rows(cluster: ShardCluster) -> None:
    turns = iter(range(3, 100))
    few = (
        select(Basket.household_id)
        .order_by(Basket.household_id)
        .limit(bindparam(None, callable_=lambda: next(turns)))
        .execution_options(scatter=True)
    )
    with cluster.session() as session:
        for size in (3, 4, 5):
            assert session.scalars(few).all() == [*range(size)]


def test_rows_of_an_object_are_those_of_what_it_is_after_a_flush(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        basket = Basket(household_id=7, id=NEW)
        line = Line(number=5)  # its key is its basket's, from the flush on
        basket.lines = [line]
        session.add(basket)
        assert session.scalars(select(Basket).where(with_parent(line, Line.basket))).all() == [
            basket
        ]
        for rows in (
            select(Line).where(with_parent(basket, Basket.lines)),
            select(Line).where(Line.basket == basket),
        ):
            assert [line.number for line in session.scalars(rows)] == [5]
        with session.no_autoflush:
            session.add(Line(household_id=7, basket_id=NEW, number=6))
            assert len(session.scalars(select(Line).where(Line.basket == basket)).all()) == 1


def test_a_computed_value_does_not_lead_out_of_a_pinned_session(cluster: ShardCluster) -> None:
    shard_map = cluster.router.map_of(households)
    theirs = next(
        key for key in range(10) if key != 7 and shard_map.shard_of(key) == shard_map.shard_of(7)
    )
    for statement, column in (
        (select(BASKETS.c.household_id).where, BASKETS.c.household_id),
        (delete(LINES).where, LINES.c.household_id),
        (update(BASKETS).values(cents=0).where, BASKETS.c.household_id),
    ):
        turns = iter((7, theirs, 7, theirs))
        named: Any = bindparam(None, callable_=partial(next, turns), type_=BigInteger)
        with cluster.on(households, household_id=7) as session:
            done: Any = session.execute(statement(column == named))
            if done.returns_rows:
                assert done.scalars().all() == [7]
            session.commit()
    with cluster.session() as session:
        assert session.get_one(Basket, (theirs, 1)).cents == theirs
        assert session.get(Line, (theirs, 1, 1)) is not None


def test_where_a_computed_value_cannot_be_replaced_it_is_refused(cluster: ShardCluster) -> None:
    said = Changing(cluster)

    def key() -> BindParameter[Any]:
        return bindparam(None, callable_=said, type_=BigInteger)

    inner = aliased(Basket, select(Basket).where(Basket.household_id == key()).subquery())
    criteria = with_loader_criteria(Basket, Basket.household_id == key())
    with cluster.session() as session:
        for statement in (select(inner), select(Basket).options(criteria)):
            with pytest.raises(UnroutableStatementError, match="pass its value"):
                session.execute(statement)
        row = {"household_id": key(), "id": NEW}
        with pytest.raises(ShardKeyError, match="pass its value"):
            session.execute(insert(BASKETS), row)
        with pytest.raises(ShardKeyError, match="pass its value"):
            session.execute(insert(BASKETS).values([row, row]))
