"""References on asyncio, of sessions that are pinned to a shard, and to keys in parts."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, BigInteger, Text, create_engine, delete, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.errors import ParentInUseError, ParentMissingError, ReferenceWriteError
from datapatterns.sharding import (
    Composite,
    EntityGroup,
    Hash,
    ListMap,
    ShardCluster,
    ShardForeignKey,
)
from tests.fixtures.atomic import needs_prepared_transactions, prepared
from tests.fixtures.referring import (
    Customer,
    Order,
    add_customers,
    all_customers,
    all_orders,
    customers,
    die_with_an_order_prepared,
    keys_on,
    referring_shop,
    stores,
)
from tests.fixtures.shard_model import named

pytestmark = pytest.mark.postgres

MISSING = 999_999


@pytest.fixture
def cluster(shard_urls: list[URL]) -> Iterator[ShardCluster]:
    needs_prepared_transactions(shard_urls[0])
    with referring_shop(shard_urls[:3]) as cluster:
        yield cluster
        assert prepared(cluster) == []


# asyncio -------------------------------------------------------------------------------------


def test_sessions_on_asyncio_check_as_others_do(cluster: ShardCluster) -> None:
    known, shops = keys_on(cluster, customers), keys_on(cluster, stores)
    add_customers(cluster, *known)
    rows = [
        {"store_id": store, "id": 2, "customer_id": customer}
        for store, customer in zip(shops, known, strict=True)
    ]

    async def trade() -> None:
        async with cluster:
            async with cluster.async_session(atomic=True) as session, session.begin():
                session.add(Order(store_id=shops[0], id=1, customer_id=known[1], payer=known[2]))
                await session.execute(insert(Order), rows)
            async with cluster.async_session(atomic=True) as session:
                session.add(Order(store_id=shops[0], id=3, customer_id=MISSING))
                with pytest.raises(ParentMissingError):
                    await session.commit()
            async with cluster.async_session(atomic=True) as session:
                with pytest.raises(ParentInUseError):
                    await session.execute(delete(Customer).where(Customer.id.in_(known)))
            async with cluster.async_session() as session:
                await session.delete(await session.get_one(Customer, known[2]))
                with pytest.raises(ParentInUseError):
                    await session.commit()

    asyncio.run(trade())

    assert all_customers(cluster) == sorted(known)
    assert len(all_orders(cluster)) == 4


def test_what_is_prepared_is_ended_on_asyncio_too(cluster: ShardCluster) -> None:
    store, customer = keys_on(cluster, stores)[0], keys_on(cluster, customers)[1]
    add_customers(cluster, customer)
    die_with_an_order_prepared(cluster, store, customer)

    async def delete_it() -> None:
        async with cluster, cluster.async_session() as session:
            await session.delete(await session.get_one(Customer, customer))
            with pytest.raises(ParentInUseError):
                await session.commit()

    asyncio.run(delete_it())


# Pinned --------------------------------------------------------------------------------------


def test_a_pinned_session_says_where_to_write_what_refers(cluster: ShardCluster) -> None:
    store, customer = keys_on(cluster, stores)[0], keys_on(cluster, customers)[1]
    add_customers(cluster, customer)
    elsewhere = ReferenceWriteError, r"atomic=True"

    with cluster.on(stores, store_id=store) as session:
        session.add(Order(store_id=store, id=1, note="of nobody"))
        session.commit()
        session.add(Order(store_id=store, id=2, customer_id=customer))
        with pytest.raises(elsewhere[0], match=elsewhere[1]):
            session.commit()
        session.rollback()
        for statement in (
            insert(Order).values(store_id=store, id=3, customer_id=customer),
            update(Order).values(customer_id=customer),
        ):
            with pytest.raises(elsewhere[0], match=elsewhere[1]):
                session.execute(statement)
        session.execute(update(Order).values(note="of nobody still", customer_id=None))
        session.execute(delete(Order))
        session.commit()
    with cluster.on(customers, id=customer) as session:
        session.get_one(Customer, customer).name = "somebody"
        session.commit()
        with pytest.raises(elsewhere[0], match=elsewhere[1]):
            session.execute(delete(Customer))
        session.delete(session.get_one(Customer, customer))
        with pytest.raises(elsewhere[0], match=elsewhere[1]):
            session.commit()

    assert (all_customers(cluster), all_orders(cluster)) == ([customer], [])


# Keys in parts -------------------------------------------------------------------------------


tenants = EntityGroup(
    "tenant",
    strategy=Composite(ListMap({"eu": 0, "us": 1}), Hash(buckets=4)),
    key=(Text, BigInteger),
)
things = EntityGroup("thing", strategy=Hash(buckets=4))


class Base(DeclarativeBase):
    pass


class Tenant(Base):
    __tablename__ = "tenant"
    __shard__ = tenants.by("region", "id")

    region: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class Thing(Base):
    __tablename__ = "thing"
    __shard__ = things.by("id")

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    owner: Mapped[int | None] = mapped_column(BigInteger)
    region: Mapped[str | None] = mapped_column(Text(collation="C"))


def test_a_key_in_two_parts_is_referred_to_in_any_order(shard_urls: list[URL]) -> None:
    for url in shard_urls[:3]:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        engine.dispose()
    owned = ShardForeignKey(
        (Thing.owner, Thing.region), (Tenant.id, Tenant.region), check="on_write"
    )
    with ShardCluster(
        control=shard_urls[0],
        shards=named(shard_urls[:3]),
        groups=[tenants, things],
        references=[owned],
    ) as cluster:
        cluster.create_map()
        with cluster.session(atomic=True) as session, session.begin():
            session.add_all(Tenant(region=r, id=n) for r in ("eu", "us") for n in range(4))
            session.add_all(Thing(id=n, owner=n, region="us") for n in range(4))
        with cluster.session(atomic=True) as session:
            session.add(Thing(id=9, owner=9, region="us"))
            with pytest.raises(ParentMissingError):
                session.commit()
            session.rollback()
            session.add(Thing(id=9, owner=1, region="no such region"))
            with pytest.raises(ParentMissingError):
                session.commit()
            session.rollback()
            session.execute(delete(Tenant).where(Tenant.region == "eu"))
            with pytest.raises(ParentInUseError):
                session.execute(delete(Tenant).where(Tenant.region == "us"))
