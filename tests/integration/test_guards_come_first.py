"""A shard says what it does not own before it says that there are no rows, whatever is asked."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Select, exists, func, literal, select
from sqlalchemy.orm import aliased, joinedload, subqueryload, with_loader_criteria

from datapatterns.errors import ScatterRefusedError, StaleShardMapError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.shard_model import Basket, Line, households, sharded_shop
from tests.integration.test_shard_session import is_fenced
from tests.integration.test_single_shard_statements import moved_away, sent

pytestmark = pytest.mark.postgres

KEY = 7
OTHER = aliased(Basket)
LINES = (Line.household_id == Basket.household_id) & (Line.basket_id == Basket.id)


@pytest.fixture(scope="module")
def cluster(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with sharded_shop(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


def another(cluster: ShardCluster) -> int:
    """Return another key on the same shard, in another bucket."""
    shard_map = cluster.router.map_of(households)
    shard = shard_map.shard_of(KEY)
    return next(key for key in range(20) if key != KEY and shard_map.shard_of(key) == shard)


def found() -> Any:  # noqa: ANN401 -- a condition
    """A condition that no row of the statement is in, and that is false without rows."""
    return exists().where(OTHER.household_id == KEY)


def count() -> Any:  # noqa: ANN401 -- an expression
    return select(func.count()).where(OTHER.household_id == KEY).scalar_subquery()


MINE = select(Basket.id).where(Basket.household_id == KEY)

IN_WHERE: list[Select[Any]] = [
    MINE.where(found()),
    select(Basket.id).where(count() > 0, Basket.household_id == KEY),
    MINE.where(select(OTHER.id).where(OTHER.household_id == KEY).scalar_subquery().is_not(None)),
    MINE.where(literal(1).in_(select(OTHER.id).where(OTHER.household_id == KEY))),
    MINE.options(with_loader_criteria(Basket, found())),
    select(Basket).options(joinedload(Basket.lines)).where(Basket.household_id == KEY, found()),
]
EARLIER: list[Select[Any]] = [
    MINE.join(Line, LINES & found()),
    select(MINE.where(found()).subquery().c.id),
    select(MINE.where(found()).cte().c.id),
    MINE.limit(count()),
    select(literal(1)).select_from(Basket).where(Basket.household_id == KEY).having(found()),
]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("statement", [*IN_WHERE, *EARLIER])
def test_no_condition_is_looked_at_before_the_guard(
    cluster: ShardCluster,
    statement: Select[Any],
    again: bool,  # noqa: FBT001 -- a case
) -> None:
    with cluster.session() as session:
        for _ in range(3 if again else 0):  # from then on its shape is known
            assert session.execute(statement).unique().all() == []
    with (
        moved_away(cluster, KEY),
        cluster.session() as session,
        pytest.raises(StaleShardMapError),
    ):
        session.execute(statement)


def test_nor_before_that_of_several_buckets_or_of_a_whole_shard(cluster: ShardCluster) -> None:
    several = select(Basket.id).where(Basket.household_id.in_([KEY, another(cluster)]))
    whole = select(Basket.id).execution_options(
        shard=cluster.router.map_of(households).shard_of(KEY)
    )
    with moved_away(cluster, KEY), cluster.session() as session:
        for statement in (
            several.where(count() > 0),
            several.where(found()),
            several.join(Line, LINES & found()),
            whole.where(count() > 0),
            whole.where(found()),
            whole.join(Line, LINES & found()),
        ):
            with pytest.raises(StaleShardMapError):
                session.execute(statement)
            session.rollback()


def test_a_condition_in_where_costs_no_round_trip(cluster: ShardCluster) -> None:
    with cluster.session() as session, sent(cluster) as statements:
        for statement in IN_WHERE:
            session.execute(statement).unique().all()
    assert len(statements) == len(IN_WHERE)


def test_a_load_by_subquery_is_refused_by_what_it_reads_and_not_by_its_guard(
    cluster: ShardCluster,
) -> None:
    loaded = select(Basket).options(subqueryload(Basket.lines))
    with cluster.session() as session:  # what it adds is rolled back
        session.add(Basket(household_id=KEY, id=1))
        with pytest.raises(ScatterRefusedError, match="line"):
            session.scalars(loaded.where(Basket.household_id == KEY)).all()


@pytest.mark.parametrize("again", [False, True])
def test_a_bucket_of_locked_rows_stays_wherever_in_the_statement_they_are_locked(
    cluster: ShardCluster,
    again: bool,  # noqa: FBT001 -- a case
) -> None:
    shard_map = cluster.router.map_of(households)
    place, shard = (shard_map.group_id, shard_map.strategy.bucket(KEY)), shard_map.shard_of(KEY)
    locked = MINE.with_for_update()

    for statement in (
        locked,
        select(locked.cte().c.id),
        select(locked.subquery().c.id),
        select(Line.number).where(Line.household_id == KEY, Line.basket_id.in_(locked)),
        select(locked.scalar_subquery()),
    ):
        for _ in range(3 if again else 0):
            with cluster.session() as session:
                session.execute(statement)
        with cluster.engines[shard].connect() as mover, cluster.session() as session:
            session.execute(statement)
            assert is_fenced(mover, *place)
