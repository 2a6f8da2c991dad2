"""Shards through PgBouncer in transaction mode: each transaction is another session's.

The server's defaults are others than those that shards agree upon, so a setting that got lost
would change an answer; and a stranger shares the sessions, for whom nothing may be set.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from threading import Event
from typing import Any

import pytest
from sqlalchemy import URL, Select, Text, cast, create_engine, func, select, text

from datapatterns.errors import IndexKeyTakenError, StaleShardMapError
from datapatterns.sharding import ShardCluster, engines
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.broadcast_model import Base as BroadcastBase
from tests.fixtures.broadcast_model import Country, copies, families
from tests.fixtures.poolers import Pool, plain_engine
from tests.fixtures.shard_model import Base, Basket, households, named
from tests.fixtures.sharded_people import Base as PeopleBase
from tests.fixtures.sharded_people import Customer, by_city, by_email, tenants
from tests.fixtures.sharded_people import both as indexes

pytestmark = pytest.mark.postgres

HOSTILE = {
    "IntervalStyle": "sql_standard",
    "TimeZone": "America/New_York",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
}
NEW_YEAR = datetime(2026, 1, 1, 3, tzinfo=UTC)
HOUSEHOLDS = range(40)


@pytest.fixture
def pooled(pool: Pool, shard_urls: list[URL]) -> list[URL]:
    """The addresses of poolers before shards whose defaults are strange."""
    for url in shard_urls[:3]:
        engine = create_engine(url)
        for metadata in (Base.metadata, BroadcastBase.metadata, PeopleBase.metadata):
            metadata.create_all(engine)
        with engine.begin() as conn:
            for name, value in HOSTILE.items():
                conn.execute(text(f"ALTER DATABASE \"{url.database}\" SET {name} = '{value}'"))
        engine.dispose()
    return pool(shard_urls[:3])


@pytest.fixture
def cluster(pooled: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(pooled[0])
    with ShardCluster(
        control=pooled[0],
        shards=named(pooled),
        groups=[households, families, tenants],
        indexes=indexes,
    ) as cluster:
        cluster.create_map()
        indexes.create(cluster)
        indexes.build(cluster)
        fill(cluster)
        yield cluster
        cluster.recover(grace_seconds=0)


def fill(cluster: ShardCluster) -> None:
    for household in HOUSEHOLDS:
        with cluster.session() as session, session.begin():
            session.add(
                Basket(
                    household_id=household,
                    id=1,
                    cents=household,
                    weight=1 / 3,
                    at=NEW_YEAR,
                    price=Decimal("1.50"),
                )
            )


TOLD = select(cast(Basket.at, Text), cast(Basket.weight, Text), func.date_trunc("day", Basket.at))
EXPECTED = ("2026-01-01 03:00:00+00", "0.3333333333333333", datetime(2026, 1, 1, tzinfo=UTC))


def one_by_one(cluster: ShardCluster) -> list[tuple[object, ...]]:
    """Ask for each household in a transaction of its own, by turns with a stranger's."""
    rows: list[Any] = []
    for household in HOUSEHOLDS:
        with cluster.session() as session:
            rows += session.execute(TOLD.where(Basket.household_id == household)).all()
    return [tuple(row) for row in rows]


def merged(cluster: ShardCluster) -> list[tuple[object, ...]]:
    """Let PostgreSQL combine what the shards answer."""
    statement = (
        select(cast(Basket.at, Text), func.count(Basket.weight.distinct()), func.max(Basket.at))
        .group_by(Basket.at)
        .having(func.count() > 1)
    )
    with cluster.session(scatter=True) as session:
        return [tuple(row) for row in session.execute(statement)]


def together(cluster: ShardCluster) -> list[tuple[object, ...]]:
    """Ask all shards for columns, which goes past SQLAlchemy where no pooler stands."""
    with cluster.session(scatter=True) as session:
        return [tuple(row) for row in session.execute(TOLD)]


def test_each_transaction_has_the_settings_that_shards_agree_upon(cluster: ShardCluster) -> None:
    assert one_by_one(cluster) == [EXPECTED] * len(HOUSEHOLDS)
    assert together(cluster) == [EXPECTED] * len(HOUSEHOLDS)
    assert merged(cluster) == [("2026-01-01 03:00:00+00", 1, NEW_YEAR)]


def test_without_them_a_strangers_time_zone_would_be_seen(
    pooled: list[URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control: a session's settings do not reach the next transaction."""
    monkeypatch.setattr(engines, "settle_each_transaction", lambda engine, _settings: engine)
    needs_prepared_transactions(pooled[0])
    with ShardCluster(control=pooled[0], shards=named(pooled), groups=[households]) as cluster:
        cluster.create_map()
        fill(cluster)

        assert one_by_one(cluster) != [EXPECTED] * len(HOUSEHOLDS)


def test_nothing_is_set_for_strangers(cluster: ShardCluster, pooled: list[URL]) -> None:
    one_by_one(cluster)
    for url in pooled:
        engine = plain_engine(url)
        for _ in range(5):
            with engine.connect() as conn:
                found = {name: conn.scalar(text(f"SHOW {name}")) for name in HOSTILE}
            # What the driver asks of PgBouncer when it connects it hands on to each session.
            assert found == HOSTILE


def test_an_application_may_still_choose_its_isolation_level(cluster: ShardCluster) -> None:
    with cluster.engines["s0"].begin() as conn:
        conn.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        assert conn.scalar(text("SHOW transaction_isolation")) == "serializable"


def test_nothing_is_prepared_that_another_session_would_miss(cluster: ShardCluster) -> None:
    statement = select(Basket.cents).where(Basket.household_id == 7)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: asked(cluster, statement), range(120)))

    assert found == [7] * 120


def asked(cluster: ShardCluster, statement: Select[int | None]) -> int | None:
    with cluster.session() as session:
        assert session.get_one(Basket, (7, 1)).cents == 7
        return session.scalars(statement).one()


def test_transactions_over_several_shards_are_all_or_nothing(cluster: ShardCluster) -> None:
    for household in HOUSEHOLDS:
        with cluster.session(atomic=True) as session, session.begin():
            session.add(Basket(household_id=household, id=2, cents=1))
            session.add(Basket(household_id=household + 1, id=3, cents=-1))
        with cluster.session(atomic=True) as session:
            session.add(Basket(household_id=household, id=4, cents=1))
            session.add(Basket(household_id=household + 1, id=5, cents=1))
            session.flush()
            session.rollback()

    with cluster.session(scatter=True) as session:
        total = session.scalar(select(func.sum(Basket.cents)).where(Basket.id > 1))
        count = session.scalar(select(func.count()).where(Basket.id > 1))
    assert (total, count) == (0, 2 * len(HOUSEHOLDS))
    assert all(each.prepared == 0 for each in cluster.health())


def test_buckets_move_while_others_write(cluster: ShardCluster) -> None:
    moving = cluster.router.map_of(households).buckets_on("s0")[:2]
    done = Event()

    def write() -> int:
        written = 0
        while not done.is_set():
            for household in HOUSEHOLDS:
                with suppress(StaleShardMapError), cluster.session() as session, session.begin():
                    session.get_one(Basket, (household, 1)).cents = 1_000
                    written += 1
        return written

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        try:
            for bucket in moving:
                moved = cluster.move(households, bucket, to="s1", clean_after_seconds=0)
                assert moved.state == "cleaned"
        finally:
            done.set()
    assert all(writer.result() for writer in writers)
    assert one_by_one(cluster) == [EXPECTED] * len(HOUSEHOLDS)
    assert sum(table.misplaced for shard in cluster.stats() for table in shard.tables) == 0


def test_broadcast_rows_are_written_everywhere(cluster: ShardCluster) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add(Country(code="NZ", name="New Zealand"))

    assert cluster.verify_broadcast(Country).equal
    assert len({*map(tuple, copies(cluster, "country").values())}) == 1


def test_an_index_over_shards_is_kept_and_keeps_keys_unique(cluster: ShardCluster) -> None:
    for tenant in range(20):
        with cluster.session() as session, session.begin():
            session.add(Customer(tenant_id=tenant, id=1, email=f"c{tenant}@x", city="Bonn"))
    with cluster.session() as session:
        session.add(Customer(tenant_id=99, id=1, email="c7@x"))
        with pytest.raises(IndexKeyTakenError):
            session.commit()

    with cluster.session() as session:
        [found] = by_email.lookup(session, "c7@x")
        assert (found.tenant_id, len(by_city.lookup(session, "Bonn"))) == (7, 20)


def test_tasks_go_the_same_way(cluster: ShardCluster) -> None:
    async def go() -> tuple[list[object], int | None]:
        async with cluster.async_session() as session, session.begin():
            session.add(Basket(household_id=500, id=1, at=NEW_YEAR, weight=1 / 3))
        rows: list[object] = []
        for _ in range(12):
            async with cluster.async_session() as session:
                found = await session.execute(TOLD.where(Basket.household_id == 500))
                rows += [tuple(row) for row in found]
        async with cluster.async_session(scatter=True) as session:
            count = await session.scalar(select(func.count()).select_from(Basket))
        await cluster.aclose()
        return rows, count

    assert asyncio.run(go()) == ([EXPECTED] * 12, len(HOUSEHOLDS) + 1)
