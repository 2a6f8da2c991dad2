"""How often a transaction waits for its shards, and that it is bound none the less."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, insert, select, text, update

from datapatterns.errors import ShardTransactionEndedError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import keys_on_each
from tests.fixtures.round_trips import round_trips
from tests.fixtures.shard_model import Basket, households, sharded_shop

pytestmark = pytest.mark.postgres

Use = Callable[[ShardCluster, int], object]


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(3)]
    with sharded_shop(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def keys(shop: ShardCluster) -> list[int]:
    """One key on each shard, with a basket."""
    keys = keys_on_each(shop)
    for key in keys:
        shard = shop.router.map_of(households).shard_of(key)
        with shop.begin_bulk(households, shard) as conn:
            conn.execute(text("TRUNCATE basket, line"))
            conn.execute(insert(Basket).values(household_id=key, id=1, cents=0))
    return keys


@pytest.fixture
def cluster(shop: ShardCluster, keys: list[int]) -> ShardCluster:  # noqa: ARG001 -- rows are there
    return shop


def get(cluster: ShardCluster, key: int) -> None:
    with cluster.session() as session:
        assert session.get(Basket, (key, 1)) is not None


def read(cluster: ShardCluster, key: int) -> None:
    with cluster.session() as session:
        session.scalars(select(Basket).where(Basket.household_id == key)).all()
        session.commit()


def read_and_change(cluster: ShardCluster, key: int, *, atomic: bool = False) -> None:
    with cluster.session(atomic=atomic) as session, session.begin():
        basket = session.get_one(Basket, (key, 1))
        basket.cents = (basket.cents or 0) + 1


def change_atomically(cluster: ShardCluster, key: int) -> None:
    read_and_change(cluster, key, atomic=True)


def change(cluster: ShardCluster, key: int) -> None:
    with cluster.connect(households, household_id=key) as conn, conn.begin():
        conn.execute(update(Basket).where(Basket.household_id == key).values(cents=8))


def change_with_others(cluster: ShardCluster, key: int) -> None:
    with cluster.atomically() as work:
        conn = work.connect(households, household_id=key)
        conn.execute(update(Basket).where(Basket.household_id == key).values(cents=9))


@pytest.mark.parametrize(
    ("use", "trips"),
    [
        (get, 2),  # with BEGIN, and the ROLLBACK
        (read, 2),
        (read_and_change, 4),  # the SELECT with BEGIN, the claim, the UPDATE, the COMMIT
        (change_atomically, 4),
        (change, 3),
        (change_with_others, 3),
    ],
)
def test_a_transaction_waits_no_more_than_it_must(
    cluster: ShardCluster, keys: list[int], tmp_path: Path, use: Use, trips: int
) -> None:
    use(cluster, keys[1])

    with round_trips([*cluster.engines.values()], tmp_path) as waits:
        use(cluster, keys[1])

    assert waits.counts == [trips]


@pytest.mark.parametrize("reads_first", [True, False])
def test_reads_of_one_shard_are_bound_when_another_is_written_to(
    cluster: ShardCluster, keys: list[int], *, reads_first: bool
) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.get_one(Basket, (keys[0], 1))
        if reads_first:
            session.get_one(Basket, (keys[1], 1)).cents = 3
        else:
            session.add(Basket(household_id=keys[1], id=2, cents=3))
        session.flush()

        parts = session._work.parts  # noqa: SLF001 -- who asks for a connection is bound by that
        for shard in ("s0", "s1"):
            conn = parts.on(shard, asks_only=True)
            assert conn.scalar(text("SHOW lock_timeout")) == "5s"


def test_who_ends_a_part_by_sql_text_is_found_out(cluster: ShardCluster, keys: list[int]) -> None:
    with cluster.session(atomic=True) as session:
        session.get_one(Basket, (keys[0], 1)).cents = 4
        session.flush()
        session.connection(bind_arguments={"shard_id": "s0"}).execute(text("COMMIT; BEGIN"))
        session.get_one(Basket, (keys[1], 1)).cents = 4
        with pytest.raises(ShardTransactionEndedError):
            session.commit()


def test_a_wait_on_the_only_shard_of_a_work_has_an_end(
    cluster: ShardCluster, keys: list[int]
) -> None:
    with cluster.atomically(lock_seconds=0.25) as work:
        conn = work.connect(households, household_id=keys[0])
        assert conn.scalar(text("SHOW lock_timeout")) == "250ms"
        conn = work.connect(households, household_id=keys[1])
        assert conn.scalar(text("SHOW lock_timeout")) == "250ms"
