"""Statements for one shard: each guard, and no round trip more than its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, Engine, bindparam, event, insert, select, text, update
from sqlalchemy.orm import ORMExecuteState, Session, selectinload, with_loader_criteria

from datapatterns.errors import (
    ScatterRefusedError,
    ShardKeyError,
    ShardUnavailableError,
    StaleShardMapError,
    UnroutableStatementError,
)
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, Line, households, sharded_shop

pytestmark = pytest.mark.postgres

BASKETS = Basket.__table__


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(2)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with sharded_shop(urls) as cluster:
        yield cluster


@pytest.fixture
def cluster(shop: ShardCluster) -> Iterator[ShardCluster]:
    with shop.session(atomic=True) as session, session.begin():
        for key in range(10):
            session.add(Basket(household_id=key, id=1, cents=key * 10))
            session.flush()
            session.add(Line(household_id=key, basket_id=1, number=1))
    yield shop
    for engine in shop.engines.values():
        with engine.begin() as conn:
            conn.execute(text("TRUNCATE basket, line"))


@contextmanager
def moved_away(cluster: ShardCluster, key: int) -> Iterator[None]:
    """The shard has given the bucket of ``key`` away, and the router does not know it."""
    shard_map = cluster.router.map_of(households)
    change = text(
        "UPDATE datapatterns.bucket SET state = :state WHERE bucket = :bucket AND group_id = :id"
    )
    place = {"bucket": shard_map.strategy.bucket(key), "id": shard_map.group_id}
    engine = cluster.engines[shard_map.shard_of(key)]
    with engine.begin() as conn:
        conn.execute(change, {"state": "moved", **place})
    try:
        yield
    finally:
        with engine.begin() as conn:
            conn.execute(change, {"state": "owned", **place})


@contextmanager
def sent(cluster: ShardCluster) -> Iterator[list[str]]:
    """What is sent to shards."""
    statements: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    engines: list[Engine] = list(cluster.engines.values())
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


def get(session: Session, key: int, number: int) -> object:
    return session.get(Basket, (key, number))


def get_with_options(session: Session, key: int, number: int) -> object:
    return session.get(Basket, (key, number), options=[selectinload(Basket.lines)])


def entity(session: Session, key: int, number: int) -> object:
    return session.scalars(
        select(Basket).where(Basket.household_id == key, Basket.id == number)
    ).one_or_none()


def columns(session: Session, key: int, number: int) -> object:
    return session.execute(
        select(BASKETS.c.cents).where(BASKETS.c.household_id == key, BASKETS.c.id == number)
    ).one_or_none()


def total(session: Session, key: int, number: int) -> object:
    return session.scalar(
        select(Basket.cents).where(Basket.household_id == key, Basket.id == number)
    )


def flush(session: Session, *_: int) -> None:
    session.flush()


def commit(session: Session, *_: int) -> None:
    session.commit()


READS: list[Callable[[Session, int, int], object]] = [
    get,
    get_with_options,
    entity,
    columns,
    total,
]


@pytest.mark.parametrize("number", [1, 99])
@pytest.mark.parametrize("read", READS)
def test_what_a_shard_has_given_away_is_not_read_there_whether_rows_are_left_or_not(
    cluster: ShardCluster, read: Callable[[Session, int, int], object], number: int
) -> None:
    with cluster.session() as session:
        assert (read(session, 7, number) is None) == (number == 99)
    with moved_away(cluster, 7), cluster.session() as session:
        with pytest.raises(StaleShardMapError) as caught:
            read(session, 7, number)
        assert cluster.router.map_of(households).shard_of(7) in str(caught.value)


def test_without_its_guard_a_read_would_find_nothing_and_not_say_why(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "datapatterns.sharding.sessions.reading.owns_buckets", lambda *_, **__: text("true")
    )
    with moved_away(cluster, 7), cluster.session() as session:
        assert entity(session, 7, 99) is None


def test_the_guard_is_asked_once_and_before_any_row(cluster: ShardCluster) -> None:
    with cluster.session() as session, sent(cluster) as statements:
        entity(session, 7, 1)
    (asked,) = statements
    with cluster.engines["s0"].connect() as conn:
        names = ("household_id_1", "id_1", "param_1", "param_2", "param_3")
        plan = "\n".join(
            conn.exec_driver_sql(f"EXPLAIN {asked}", dict.fromkeys(names, 1)).scalars()
        )
    assert "One-Time Filter: ((InitPlan" in plan
    assert "assert_owned" not in plan


def test_a_statement_goes_on_with_what_other_listeners_add(cluster: ShardCluster) -> None:
    def only_cheap(state: ORMExecuteState) -> None:
        if state.is_select and not state.is_column_load:
            state.statement = state.statement.options(
                with_loader_criteria(Basket, Basket.cents < 50)
            )

    with cluster.session() as session:
        event.listen(session, "do_orm_execute", only_cheap)
        for read in (get, entity):
            assert read(session, 7, 1) is None
            assert read(session, 4, 1) is not None
            session.expunge_all()


def test_one_statement_is_sent_for_an_object(cluster: ShardCluster) -> None:
    with cluster.session() as session, sent(cluster) as statements:
        for key in range(10):
            assert session.get_one(Basket, (key, 1)).cents == key * 10
    assert len(statements) == 10
    assert len(set(statements)) == 1


def test_objects_are_found_whatever_their_key_is_given_as(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        assert session.get(Basket, {"household_id": 7, "id": 1}) is not None
        assert session.get(Basket, (7, 1), with_for_update=True) is not None
        session.expunge_all()
        for wrong in ("7", 7.0, True, 2**63):
            with pytest.raises(ShardKeyError):
                session.get(Basket, (wrong, 1))
        changed = session.get_one(Basket, (7, 1))
        changed.cents = 1
        assert session.get_one(Basket, (7, 1), populate_existing=True).cents == 1


@pytest.mark.parametrize("read", READS)
def test_a_shard_whose_connection_breaks_is_named(
    cluster: ShardCluster, read: Callable[[Session, int, int], object]
) -> None:
    shard = cluster.router.map_of(households).shard_of(7)

    with cluster.session() as session:
        own = session.connection(bind_arguments={"shard_id": shard})
        driver: Any = own.connection.driver_connection
        driver.close()
        with pytest.raises(ShardUnavailableError, match=shard):
            read(session, 7, 99)


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("read", [flush, commit, get, entity, total])
def test_a_flush_that_fails_names_its_own_shard_and_not_that_of_the_next_statement(
    cluster: ShardCluster,
    read: Callable[..., object],
    atomic: bool,  # noqa: FBT001 -- a case
) -> None:
    shard_of = cluster.router.map_of(households).shard_of
    other = next(key for key in range(10) if shard_of(key) != shard_of(7))

    with cluster.session(atomic=atomic) as session:
        session.add(Basket(household_id=other, id=50))
        session.flush()
        own = session.connection(bind_arguments={"shard_id": shard_of(other)})
        driver: Any = own.connection.driver_connection
        driver.close()
        session.add(Basket(household_id=other, id=51))
        with pytest.raises(ShardUnavailableError) as caught:
            read(session, 7, 1)
        assert caught.value.shard == shard_of(other)


def test_a_flush_before_a_statement_has_no_connection_of_that_statement(
    cluster: ShardCluster,
) -> None:
    tried: list[Session] = []

    def look(session: Session, *_: object) -> None:
        tried.append(session)
        with pytest.raises(UnroutableStatementError, match="no connection of its own"):
            session.connection()
        assert entity(session, 7, 1) is not None

    with cluster.session() as session:
        event.listen(session, "before_flush", look)
        for number, read in enumerate((entity, get, total), 60):
            session.add(Basket(household_id=7, id=number))
            assert read(session, 6, 1) is not None
    assert len(tried) == 3


def test_rows_are_counted_as_queries_count_them(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        mine = session.query(Basket).filter_by(household_id=7)
        assert mine.count() == 1
        assert mine.filter(Basket.cents > 70).count() == 0
        with moved_away(cluster, 7), pytest.raises(StaleShardMapError):
            mine.count()
        session.rollback()
        with pytest.raises(ScatterRefusedError):
            session.query(Basket).count()


@pytest.mark.parametrize("pinned", [False, True])
def test_tables_of_another_schema_than_the_declared_one_are_not_read(
    cluster: ShardCluster,
    pinned: bool,  # noqa: FBT001 -- a case
) -> None:
    other: dict[str, Any] = {"schema_translate_map": {None: "pg_temp"}}
    mine = select(Basket).where(Basket.household_id == 7)
    changed = update(Basket).where(Basket.household_id == 7).values(cents=1)
    with pytest.raises(UnroutableStatementError, match="name the schema"):
        cluster.session(execution_options=other)
    with cluster.on(households, household_id=7) if pinned else cluster.session() as session:
        for read in (
            lambda: session.get(Basket, (7, 1), execution_options=other),
            lambda: session.execute(mine, execution_options=other),
            lambda: session.execute(mine.execution_options(**other)),
            lambda: session.execute(changed, execution_options=other),
            lambda: session.execute(select(Basket), execution_options={"scatter": True, **other}),
        ):
            with pytest.raises(UnroutableStatementError, match="name the schema"):
                read()
        assert len(session.scalars(mine, execution_options={"schema_translate_map": None}).all())


# Values that a statement keeps -----------------------------------------------------------------

MINE = select(Basket).where(Basket.household_id == bindparam("key"))


@pytest.mark.parametrize("scatter", [False, True])
def test_values_of_params_say_where_to_read(cluster: ShardCluster, scatter: bool) -> None:  # noqa: FBT001 -- a case
    with cluster.session(scatter=scatter) as session:
        for key in range(10):
            assert [each.household_id for each in session.scalars(MINE.params(key=key))] == [key]
            # What is passed goes first.
            given = session.scalars(MINE.params(key=1), {"key": key})
            assert [each.household_id for each in given] == [key]
        listed = select(BASKETS.c.household_id).where(
            BASKETS.c.household_id.in_(bindparam("keys", expanding=True))
        )
        for keys in ([1, 2, 3, 4], [5, 6, 7, 8, 9]):
            assert sorted(session.scalars(listed.params(keys=keys))) == keys


def test_values_of_params_inside_of_a_write_are_looked_at(cluster: ShardCluster) -> None:
    theirs = select(BASKETS.c.cents).where(BASKETS.c.household_id == bindparam("key"))
    with cluster.session() as session:
        changes = update(Basket).where(
            Basket.household_id == bindparam("key"), Basket.cents.in_(theirs.params(key=3))
        )
        changed: Any = session.execute(changes.values(cents=1))
        assert changed.rowcount == 1
        assert session.get_one(Basket, (3, 1)).cents == 1
        with pytest.raises(UnroutableStatementError, match="params"):
            session.execute(
                insert(Basket).values(
                    household_id=7, id=2, cents=theirs.params(key=7).scalar_subquery()
                )
            )


def test_values_of_params_do_not_lead_out_of_a_pinned_session(cluster: ShardCluster) -> None:
    theirs = next(
        key
        for key in range(10)
        if key != 7
        and cluster.router.map_of(households).shard_of(key)
        == cluster.router.map_of(households).shard_of(7)
    )
    read = select(BASKETS.c.cents).where(BASKETS.c.household_id == bindparam("key"))
    within = update(Basket).where(
        Basket.cents.in_(select(BASKETS.c.cents).where(BASKETS.c.household_id == bindparam("key")))
    )
    with cluster.on(households, household_id=7) as session:
        assert session.scalars(read.params(key=7)).all() == [70]
        for statement, values in [
            (read.params(key=theirs), {}),
            (within.values(cents=0), {"key": theirs}),
        ]:
            with pytest.raises(ScatterRefusedError):
                session.execute(statement, values)
