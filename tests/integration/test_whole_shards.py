"""Statements for whole shards: one by its name, or changes of all of them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Executable, delete, func, insert, select, text, update

from datapatterns.errors import (
    PartialAnswerError,
    SettingsError,
    StaleShardMapError,
    UnroutableStatementError,
)
from datapatterns.sharding import AllShards, ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import keys_on_each, needs_prepared_transactions, prepared, sums
from tests.fixtures.doomed_shards import fill_each
from tests.fixtures.shard_model import Basket, sharded_shop
from tests.integration.test_single_shard_statements import sent

pytestmark = pytest.mark.postgres

EVERYWHERE = {"shard": AllShards()}
KEYS = select(Basket.household_id)


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls = [databases.new() for _ in range(3)]
    with sharded_shop(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def keys(shop: ShardCluster) -> dict[str, int]:
    needs_prepared_transactions(shop.engines["s0"].url)
    return fill_each(shop)


@pytest.fixture
def cluster(shop: ShardCluster, keys: dict[str, int]) -> Iterator[ShardCluster]:
    assert len(keys) == 3
    yield shop
    assert prepared(shop) == []


# One shard ----------------------------------------------------------------------------------------


def test_one_shard_answers_with_what_it_owns(cluster: ShardCluster, keys: dict[str, int]) -> None:
    with cluster.session() as session:
        for shard, key in keys.items():
            on_one = {"shard": shard}
            assert session.scalars(KEYS, execution_options=on_one).all() == [key]
            counted = select(func.count()).select_from(Basket)
            assert session.scalar(counted, execution_options=on_one) == 1
            assert (
                session.scalar(text("SELECT count(*) FROM basket"), execution_options=on_one) == 1
            )
            locked = session.scalars(select(Basket).with_for_update(), execution_options=on_one)
            assert [basket.household_id for basket in locked] == [key]


@pytest.mark.parametrize(
    "statement",
    [KEYS, KEYS.with_for_update(), text("SELECT 1"), delete(Basket)],
    ids=["read", "locking read", "text", "delete"],
)
def test_a_shard_that_disagrees_with_the_map_does_not_answer(
    cluster: ShardCluster, statement: Executable
) -> None:
    first = text(
        "UPDATE datapatterns.bucket SET state = :to WHERE bucket = (SELECT min(bucket)"
        " FROM datapatterns.bucket)"
    )
    with cluster.engines["s1"].begin() as conn:
        conn.execute(first, {"to": "moved"})
    try:
        with cluster.session() as session, pytest.raises(StaleShardMapError, match="'s1'"):
            session.execute(statement, execution_options={"shard": "s1"})
    finally:
        with cluster.engines["s1"].begin() as conn:
            conn.execute(first, {"to": "owned"})


def test_rows_of_one_shard_are_changed(cluster: ShardCluster, keys: dict[str, int]) -> None:
    with cluster.session() as session, session.begin():
        changed: Any = session.execute(
            update(Basket).values(cents=77), execution_options={"shard": "s1"}
        )
        assert changed.rowcount == 1

    assert sums(cluster) == {"s0": keys["s0"], "s1": 77, "s2": keys["s2"]}


def test_a_row_is_not_inserted_on_another_shard(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    row = insert(Basket).values(household_id=keys["s0"], id=2)
    with cluster.session() as session:
        with pytest.raises(UnroutableStatementError, match="s0 are not inserted on s1"):
            session.execute(row, execution_options={"shard": "s1"})
        session.execute(row, execution_options={"shard": "s0"})


@pytest.mark.parametrize("statement", [KEYS, delete(Basket), text("SELECT 1")])
def test_a_shard_that_there_is_not_is_refused(cluster: ShardCluster, statement: Executable) -> None:
    with cluster.session() as session, pytest.raises(SettingsError, match="there are s0, s1, s2"):
        session.execute(statement, execution_options={"shard": "s9"})


# All shards ---------------------------------------------------------------------------------------


def test_rows_of_all_shards_are_changed_together(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        held = session.get_one(Basket, (keys["s1"], 1))
        more = update(Basket).values(cents=Basket.cents + 100)
        changed: Any = session.execute(more, execution_options=EVERYWHERE)

        assert changed.rowcount == 3
        assert held.cents == keys["s1"] + 100

    assert sums(cluster) == {shard: key + 100 for shard, key in keys.items()}


@pytest.mark.parametrize("wanted", ["auto", "evaluate", "fetch"])
def test_objects_follow_a_change_of_all_shards_without_a_row_of_it(
    cluster: ShardCluster, keys: dict[str, int], wanted: str
) -> None:
    everywhere: dict[str, Any] = {**EVERYWHERE, "synchronize_session": wanted}
    # Python cannot evaluate that for the objects which the session has.
    some = func.abs(Basket.cents) >= keys["s1"]
    with cluster.session(atomic=True) as session, session.begin():
        held = session.get_one(Basket, (keys["s1"], 1))
        with sent(cluster) as statements:
            more = update(Basket).where(some).values(cents=Basket.cents + 100)
            session.execute(more, execution_options=everywhere)
        assert held.cents == keys["s1"] + 100
        with sent(cluster) as more_statements:
            session.execute(delete(Basket).where(some), execution_options=everywhere)
        assert session.get(Basket, (keys["s1"], 1)) is None
    assert not [each for each in (*statements, *more_statements) if "RETURNING" in each]


def test_what_was_changed_everywhere_is_returned(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    gone = delete(Basket).returning(Basket.household_id)
    with cluster.session(atomic=True) as session, session.begin():
        assert sorted(session.scalars(gone, execution_options=EVERYWHERE)) == sorted(keys.values())

    assert set(sums(cluster).values()) == {0}


def test_a_rollback_undoes_a_change_of_all_shards(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    with cluster.session(atomic=True) as session:
        session.execute(delete(Basket), execution_options=EVERYWHERE)
        session.rollback()
        session.execute(KEYS, execution_options=EVERYWHERE)
        with session.begin_nested() as savepoint:
            session.execute(update(Basket).values(cents=0), execution_options=EVERYWHERE)
            savepoint.rollback()
        session.commit()

    assert sums(cluster) == keys


def test_rows_of_a_bucket_that_is_elsewhere_are_changed_at_its_owner_s_only(
    cluster: ShardCluster, keys: dict[str, int]
) -> None:
    """As while it moves: a copy lies on the shard that it comes to."""
    stray = {"household_id": keys["s0"], "id": 1, "cents": 5}
    with cluster.engines["s2"].begin() as conn:
        conn.execute(insert(Basket), [stray])
    cluster.router.refresh()
    moving = frozenset({cluster.router.map_of(cluster.groups[0]).strategy.bucket(keys["s0"])})
    known = cluster.router._maps  # noqa: SLF001 -- as a live move would have it

    cluster.router._maps = {  # noqa: SLF001 -- the same
        name: replace(each, moving=moving) for name, each in known.items()
    }
    try:
        with cluster.session(atomic=True) as session, session.begin():
            emptied = update(Basket).values(cents=0)
            done: Any = session.execute(emptied, execution_options=EVERYWHERE)
            assert done.rowcount == 3
        with cluster.session() as session:
            assert len(session.scalars(KEYS, execution_options={"shard": "s2"}).all()) == 1
    finally:
        cluster.router._maps = known  # noqa: SLF001 -- the same

    assert sums(cluster) == {"s0": 0, "s1": 0, "s2": 5}


@pytest.mark.parametrize(
    ("statement", "options", "reason"),
    [
        (delete(Basket), AllShards(partial="allow"), "UPDATE or DELETE"),
        (update(Basket).values(at=func.now()), AllShards(), "another one on each shard"),
        (
            delete(Basket).where(Basket.id.in_(select(func.max(Basket.id)))),
            AllShards(),
            "see one shard",
        ),
    ],
)
def test_what_would_mean_something_else_on_each_shard_is_refused(
    cluster: ShardCluster, statement: Executable, options: AllShards, reason: str
) -> None:
    with (
        cluster.session(atomic=True) as session,
        pytest.raises((PartialAnswerError, UnroutableStatementError), match=reason),
    ):
        session.execute(statement, execution_options={"shard": options})


def test_a_change_of_all_shards_needs_an_atomic_session(cluster: ShardCluster) -> None:
    with cluster.session() as session, pytest.raises(UnroutableStatementError, match="atomic=True"):
        session.execute(delete(Basket), execution_options=EVERYWHERE)
    assert len(keys_on_each(cluster)) == 3
