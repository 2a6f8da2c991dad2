"""One statement that writes rows of several shards, in atomic sessions."""

from collections.abc import Iterator
from typing import cast

import pytest
from sqlalchemy import (
    URL,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import MultiShardWriteError, UnmergeableQueryError
from datapatterns.sharding import ShardCluster
from tests.fixtures.atomic import needs_prepared_transactions, prepared
from tests.fixtures.shard_model import Basket, Line, households, sharded_shop

pytestmark = pytest.mark.postgres

TABLE = cast("Table", Basket.__table__)
KEYS = list(range(12))
ROWS = [{"household_id": key, "id": 1, "cents": key} for key in reversed(KEYS)]


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with sharded_shop(shard_urls[:3]) as cluster:
        yield cluster
        assert all(engine.pool.checkedout() == 0 for engine in cluster.engines.values())  # type: ignore[attr-defined]
        assert prepared(cluster) == []


@pytest.fixture
def filled(cluster: ShardCluster) -> ShardCluster:
    with cluster.session(atomic=True) as session, session.begin():
        session.execute(insert(Basket), ROWS)
    return cluster


def stored(cluster: ShardCluster) -> dict[int, int | None]:
    """The cents of each household, each on the shard of its key."""
    found: dict[int, int | None] = {}
    for shard, engine in cluster.engines.items():
        with engine.connect() as conn:
            for key, cents in conn.execute(select(Basket.household_id, Basket.cents)):
                assert cluster.router.map_of(households).shard_of(key) == shard
                found[key] = cents
    return found


@pytest.mark.parametrize("way", ["parameters", "values", "table"])
def test_rows_are_inserted_where_they_belong(cluster: ShardCluster, way: str) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        if way == "parameters":
            session.execute(insert(Basket), ROWS)
        elif way == "values":
            session.execute(insert(Basket).values(ROWS))
        else:
            session.execute(insert(TABLE), ROWS)

    assert stored(cluster) == {key: key for key in KEYS}


@pytest.mark.parametrize("way", ["parameters", "values"])
def test_what_is_returned_is_in_the_order_of_the_rows(cluster: ShardCluster, way: str) -> None:
    new = insert(Basket).returning(Basket.household_id, (Basket.cents + 1).label("more"))

    with cluster.session(atomic=True) as session, session.begin():
        if way == "parameters":
            found = session.execute(new, ROWS).all()
        else:
            found = session.execute(new.values(ROWS)).all()

    assert [(row.household_id, row.more) for row in found] == [(k, k + 1) for k in reversed(KEYS)]


def test_inserted_objects_are_the_sessions(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        found = session.scalars(insert(Basket).returning(Basket), ROWS).all()
        assert [basket.household_id for basket in found] == KEYS[::-1]
        assert session.get(Basket, (3, 1)) in found
        found[0].cents = 99

    assert stored(cluster)[11] == 99


def test_a_conflict_is_settled_on_each_shard(filled: ShardCluster) -> None:
    new = upsert(Basket).values([{**row, "cents": 50} for row in ROWS])
    change = new.on_conflict_do_update(
        index_elements=["household_id", "id"], set_={"cents": new.excluded.cents}
    )

    with filled.session(atomic=True) as session, session.begin():
        session.execute(change)
        with pytest.raises(UnmergeableQueryError, match="ON CONFLICT"):
            session.execute(change.returning(Basket.id))

    assert {*stored(filled).values()} == {50}


def test_an_error_on_one_shard_undoes_all(filled: ShardCluster) -> None:
    new = [{"household_id": key, "id": 1 if key == 5 else 2, "cents": 0} for key in KEYS]

    with filled.session(atomic=True) as session, pytest.raises(IntegrityError):
        session.execute(insert(Basket), new)

    assert stored(filled) == {key: key for key in KEYS}


def test_a_session_that_is_not_atomic_refuses(cluster: ShardCluster) -> None:
    with cluster.session() as session, pytest.raises(MultiShardWriteError):
        session.execute(insert(Basket), ROWS)


def test_rows_are_updated_by_their_primary_keys(filled: ShardCluster) -> None:
    with filled.session(atomic=True) as session, session.begin():
        mine = session.get_one(Basket, (3, 1))
        session.execute(
            update(Basket), [{"household_id": key, "id": 1, "cents": -key} for key in KEYS]
        )
        session.refresh(mine)
        assert mine.cents == -3

    assert stored(filled) == {key: -key for key in KEYS}


def test_each_set_of_parameters_goes_to_its_shard(filled: ShardCluster) -> None:
    change = update(TABLE).where(TABLE.c.household_id == bindparam("key"))
    change = change.values(cents=bindparam("new"))

    with filled.session(atomic=True) as session, session.begin():
        session.execute(change, [{"key": key, "new": key + 1} for key in KEYS])
        several = update(TABLE).where(TABLE.c.household_id.in_([1, 2, 3, bindparam("key")]))
        with pytest.raises(UnmergeableQueryError, match="one key"):
            session.execute(several.values(cents=1), [{"key": key} for key in KEYS])

    assert stored(filled) == {key: key + 1 for key in KEYS}


def test_listed_keys_are_changed_on_their_shards(filled: ShardCluster) -> None:
    some = Basket.household_id.in_([1, 2, 3, 4, 99])

    with filled.session(atomic=True) as session, session.begin():
        mine = session.get_one(Basket, (3, 1))
        raised = session.execute(update(Basket).where(some).values(cents=Basket.cents + 100))
        assert raised.rowcount == 4  # type: ignore[attr-defined]
        assert mine.cents == 103
        gone = delete(Basket).where(some, Basket.cents > 101).returning(Basket.household_id)
        assert sorted(session.scalars(gone)) == [2, 3, 4]
        with_lines = select(literal(1)).where(Line.household_id == 1)
        with pytest.raises(UnmergeableQueryError, match="subquery"):
            session.execute(delete(Basket).where(some, with_lines.exists()))

    assert stored(filled) == {**{key: key for key in (0, *range(5, 12))}, 1: 101}


def test_each_shard_is_told_of_its_own_keys_only(filled: ShardCluster) -> None:
    """While a bucket moves, another shard has copies of its rows."""
    shard_map = filled.router.map_of(households)
    other = next(s for s in filled.engines if s != shard_map.shard_of(3))
    with filled.engines[other].begin() as conn:
        conn.execute(insert(Basket).values(household_id=3, id=1, cents=3))

    with filled.session(atomic=True) as session, session.begin():
        raised = session.execute(
            update(Basket).where(Basket.household_id.in_(KEYS)).values(cents=-1)
        )
        assert raised.rowcount == len(KEYS)  # type: ignore[attr-defined]

    with filled.engines[other].begin() as conn:
        copied = select(Basket.cents).where(Basket.household_id == 3)
        assert conn.scalar(copied) == 3
        conn.execute(text("DELETE FROM basket WHERE household_id = 3"))
    assert set(stored(filled).values()) == {-1}


def test_a_savepoint_undoes_it_on_all_shards(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        with session.begin_nested() as savepoint:
            session.execute(insert(Basket), ROWS)
            savepoint.rollback()
        session.execute(insert(Basket), ROWS[:4])

    assert len(stored(cluster)) == 4


def test_nothing_and_one_row_need_no_splitting(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.execute(insert(Basket), ROWS[:1])
        session.execute(delete(Basket).where(Basket.household_id.in_([])))
        total = select(func.count()).select_from(Basket).execution_options(scatter=True)
        assert session.scalar(total) == 1
