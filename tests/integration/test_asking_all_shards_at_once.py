"""Columns of all shards in one round trip each, beneath SQLAlchemy, and with what it promises."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    URL,
    BigInteger,
    Connection,
    Engine,
    Integer,
    Select,
    String,
    TypeDecorator,
    bindparam,
    cast,
    event,
    func,
    insert,
    literal,
    select,
    text,
    type_coerce,
)
from sqlalchemy.exc import DataError, StatementError
from sqlalchemy.orm import Session

from datapatterns.errors import StaleShardMapError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import keys_on_each
from tests.fixtures.round_trips import round_trips
from tests.fixtures.shard_model import Basket, fill, sharded_shop, whole_shop
from tests.integration.test_single_shard_statements import moved_away, sent

pytestmark = pytest.mark.postgres

ROWS = [
    {
        "household_id": number % 20,
        "id": number,
        "cents": None if number % 3 == 0 else number % 7,
        "code": "abcä"[number % 4],
        "price": number / 4,
    }
    for number in range(60)
]
IDS = select(Basket.id).order_by(Basket.id)
FIRST = IDS.limit(5)


class Backwards(TypeDecorator[str]):
    """Text that Python sees turned round."""

    impl = String(collation="C")
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: object) -> Any:  # noqa: ANN401 -- as SQLAlchemy has it
        return value and value[::-1]

    def process_result_value(self, value: Any, _dialect: object) -> Any:  # noqa: ANN401
        return value and value[::-1]


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[tuple[ShardCluster, Engine]]:
    urls: list[URL] = [databases.new() for _ in range(4)]
    with sharded_shop(urls[1:]) as cluster, whole_shop(urls[0]) as whole:
        fill(cluster, whole, ROWS)
        yield cluster, whole
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: tuple[ShardCluster, Engine]) -> Iterator[ShardCluster]:
    yield shop[0]
    assert [held(engine) for engine in shop[0].engines.values()] == [0, 0, 0]


def warm(cluster: ShardCluster, statement: Select[Any] = FIRST, times: int = 8) -> None:
    """Ask so often that connections are there and the statement is prepared."""
    for _ in range(times):
        with cluster.session(scatter=True) as session:
            session.execute(statement).all()


def prepared(cluster: ShardCluster) -> list[int]:
    """Return how many statements each shard has prepared for the connection next in turn."""
    found = []
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            names = (
                "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%assert_map%'"
            )
            found.append(conn.scalar(text(names)))
    return found


def held(engine: Engine) -> int:
    """Return how many connections are in use."""
    found: int = engine.pool.checkedout()  # type: ignore[attr-defined] # of a QueuePool
    return found


def test_a_shard_is_asked_once_and_told_the_end_once(cluster: ShardCluster, tmp_path: Path) -> None:
    warm(cluster)

    with round_trips([*cluster.engines.values()], tmp_path) as trips:
        warm(cluster, times=1)

    assert trips.counts == [2, 2, 2]


def test_what_is_asked_often_stays_prepared(cluster: ShardCluster, tmp_path: Path) -> None:
    statement = IDS.limit(7)
    warm(cluster, statement)
    with round_trips([*cluster.engines.values()], tmp_path) as trips:
        warm(cluster, statement, times=1)

    assert not [
        line for lines in trips.lines for line in lines if "Parse" in line and "SELECT" in line
    ]
    assert min(prepared(cluster)) >= 1


def test_whoever_listens_hears_what_is_sent(cluster: ShardCluster) -> None:
    warm(cluster)

    with sent(cluster) as statements, cluster.session(scatter=True) as session:
        session.execute(FIRST).all()

    assert len([each for each in statements if "assert_map" in each]) == 3


def test_what_a_session_does_when_it_begins_is_done_on_each_shard(cluster: ShardCluster) -> None:
    warm(cluster)
    begun: list[Connection] = []
    with cluster.session(scatter=True) as session:
        event.listen(session, "after_begin", lambda _s, _t, conn: begun.append(conn))
        session.execute(FIRST).all()

        assert len(begun) == 3


def test_who_listens_to_transactions_hears_of_them(cluster: ShardCluster) -> None:
    warm(cluster)
    begun: list[Connection] = []

    def note(conn: Connection) -> None:
        begun.append(conn)

    for engine in cluster.engines.values():
        event.listen(engine, "begin", note)
    try:
        warm(cluster, times=1)
    finally:
        for engine in cluster.engines.values():
            event.remove(engine, "begin", note)

    assert len(begun) == 3


def test_a_shard_that_gave_something_away_does_not_answer(cluster: ShardCluster) -> None:
    warm(cluster)

    with moved_away(cluster, 7), pytest.raises(StaleShardMapError):
        warm(cluster, times=1)
    with cluster.session(scatter=True) as session:
        assert session.scalars(FIRST).all() == [0, 1, 2, 3, 4]


def test_an_error_is_that_of_sqlalchemy_and_the_session_goes_on(cluster: ShardCluster) -> None:
    by_zero = select(literal(1) / (Basket.id - 7)).order_by(Basket.id)

    with cluster.session(scatter=True) as session:
        for _ in range(8):
            with pytest.raises(DataError, match="division by zero") as refused:
                session.execute(by_zero)
            assert "SELECT" in str(refused.value)
            session.rollback()
            assert session.scalars(FIRST).all() == [0, 1, 2, 3, 4]
            session.rollback()


def test_a_value_that_is_missing_is_named(cluster: ShardCluster) -> None:
    statement = IDS.where(Basket.id > bindparam("least", type_=Integer))
    with cluster.session(scatter=True) as session:
        for _ in range(3):
            assert session.scalars(statement, {"least": 57}).all() == [58, 59]
            with pytest.raises(StatementError, match="least"):
                session.execute(statement)
            session.rollback()


def test_a_transaction_is_one_whoever_asks(cluster: ShardCluster) -> None:
    warm(cluster)
    keys = keys_on_each(cluster)
    last = IDS.where(Basket.id > 50)
    with cluster.session(scatter=True) as session:
        session.execute(FIRST).all()
        assert [held(engine) for engine in cluster.engines.values()] == [1, 1, 1]
        session.execute(insert(Basket).values(household_id=keys[0], id=1_000, cents=1))
        assert session.scalars(last).all()[-1] == 1_000
        with session.begin_nested() as savepoint:
            session.execute(insert(Basket).values(household_id=keys[0], id=1_001, cents=1))
            assert session.scalars(last).all()[-1] == 1_001
            savepoint.rollback()
        assert session.scalars(last).all()[-1] == 1_000

        assert [held(engine) for engine in cluster.engines.values()] == [1, 1, 1]
        session.rollback()
        assert session.scalars(last).all()[-1] == 59
        session.commit()


def test_what_fails_in_a_savepoint_leaves_the_transaction(cluster: ShardCluster) -> None:
    warm(cluster)
    with cluster.session(scatter=True) as session:
        assert session.scalars(FIRST).all() == [0, 1, 2, 3, 4]
        with pytest.raises(DataError), session.begin_nested():
            session.execute(select(literal(1) / (Basket.id - 7)).order_by(Basket.id))
        assert session.scalars(FIRST).all() == [0, 1, 2, 3, 4]


def test_types_see_values_as_always(shop: tuple[ShardCluster, Engine]) -> None:
    cluster, whole = shop
    statements = [
        select(Basket.price, Basket.cents, Basket.id).order_by(Basket.price.desc()).limit(9),
        select(Basket.cents, Basket.id).order_by(Basket.cents, Basket.id),
        select(Basket.cents, Basket.id).order_by(Basket.cents.desc(), Basket.id.desc()),
        select(cast([1, 2], ARRAY(BigInteger)), Basket.id).order_by(Basket.id).limit(3),
        select(type_coerce(Basket.code + "xy", Backwards()), Basket.id).order_by(Basket.id),
        IDS.where(Basket.id.in_([3, 5, 8])),
        IDS.where(Basket.code + "" == "50% %s ä"),
        select(func.count(), func.sum(Basket.cents)),
    ]
    for statement in statements:
        with Session(whole) as session:
            expected = [repr(tuple(row)) for row in session.execute(statement)]
        for _ in range(7):
            with cluster.session(scatter=True) as session:
                assert [repr(tuple(row)) for row in session.execute(statement)] == expected
