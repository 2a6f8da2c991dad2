"""Whoever writes rows of all shards, and however: their index is kept, or the commit refused."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, insert, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    IndexBusyError,
    IndexKeyTakenError,
    IndexUndeclaredError,
)
from datapatterns.index_table import ShardIndexes
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.shard_model import named
from tests.fixtures.sharded_people import (
    Customer,
    both,
    by_city,
    by_email,
    empty,
    entries,
    people,
    rows,
    shard_of,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres

BOB = "bob@example.org"


@pytest.fixture(scope="module")
def urls(databases: Databases) -> Iterator[list[URL]]:
    urls = [databases.new() for _ in range(2)]
    yield urls
    for url in urls:
        databases.drop(url)


@pytest.fixture(scope="module")
def shop(urls: list[URL]) -> Iterator[ShardCluster]:
    with people(urls) as cluster:
        yield cluster


@pytest.fixture
def two_phases(urls: list[URL]) -> None:
    needs_prepared_transactions(urls[0])


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    empty(shop)
    return shop


def put(cluster: ShardCluster, *customers: Customer) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(customers)


def included(cluster: ShardCluster, email: str) -> object:
    with cluster.session() as session:
        [entry] = by_email.keys(session, email)
        return entry.included["name"]


def test_an_included_column_follows_its_row(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB, name="Bob"))
    with cluster.session() as session, session.begin():
        session.get_one(Customer, (1, 1)).name = "Robert"
    assert included(cluster, BOB) == "Robert"

    with cluster.session() as session, session.begin():
        session.get_one(Customer, (1, 1)).email = "rob@example.org"
        session.flush()
        session.get_one(Customer, (1, 1)).email = BOB
        session.get_one(Customer, (1, 1)).name = "Rob"
    assert included(cluster, BOB) == "Rob"
    assert entries(cluster) == rows(cluster)


def test_a_row_that_went_and_came_back_keeps_its_entry_when_the_commit_fails(
    cluster: ShardCluster,
) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB, name="Bob"))
    put(cluster, Customer(tenant_id=2, id=1, email="taken@example.org"))

    with cluster.session() as session:
        session.delete(session.get_one(Customer, (1, 1)))
        session.flush()
        session.add(Customer(tenant_id=1, id=1, email=BOB, name="Rob"))
        session.add(Customer(tenant_id=1, id=2, email="taken@example.org"))
        with pytest.raises(IndexKeyTakenError):
            session.commit()

    assert entries(cluster) == rows(cluster)


def test_a_session_on_one_key_keeps_the_index(cluster: ShardCluster) -> None:
    with cluster.on(tenants, tenant_id=1) as session, session.begin():
        session.add(Customer(tenant_id=1, id=1, email=BOB, name="Bob"))
    with cluster.on(tenants, tenant_id=2) as session:
        second = Customer(tenant_id=2, id=1, email=BOB)
        session.add(second)
        with pytest.raises(IndexKeyTakenError):
            session.commit()
        session.execute(update(Customer).values(email="two@example.org"))
        session.commit()

    assert [entry[0] for entry in entries(cluster)] == [BOB, "two@example.org"]
    assert entries(cluster) == rows(cluster)


def test_rows_loaded_in_bulk_are_found(cluster: ShardCluster) -> None:
    loaded = [
        {"tenant_id": 1, "id": number, "email": f"{number}@example.org", "city": "Rome"}
        for number in range(2000)
    ]
    with cluster.begin_bulk(tenants, shard_of(cluster, 1)) as conn:
        conn.execute(insert(Customer), loaded)

    assert len(entries(cluster)) == 2000
    assert entries(cluster) == rows(cluster)
    with cluster.session() as session:
        assert len(by_city.lookup(session, "Rome", limit=5000)) == 2000


def test_an_upsert_by_primary_key_is_kept_whatever_it_does(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    values = [{"tenant_id": 1, "id": number, "email": f"{number}@x"} for number in (1, 2)]
    made = upsert(Customer)
    made = made.on_conflict_do_update(
        index_elements=["tenant_id", "id"], set_={"email": made.excluded.email}
    )
    with cluster.session() as session, session.begin():
        session.execute(made, values)

    assert [entry[:3] for entry in entries(cluster)] == [("1@x", 1, 1), ("2@x", 1, 2)]


@pytest.mark.usefixtures("two_phases")
def test_sessions_on_asyncio_keep_and_read_the_index(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster.async_session(atomic=True) as session, session.begin():
            session.add(Customer(tenant_id=1, id=1, email=BOB))
            session.add(Customer(tenant_id=2, id=1, email="two@example.org"))
        async with cluster.async_session() as session:
            found = await session.run_sync(by_email.lookup, BOB)
            assert [(row.tenant_id, row.id) for row in found] == [(1, 1)]
            session.add(Customer(tenant_id=3, id=1, email=BOB))
            with pytest.raises(IndexKeyTakenError):
                await session.commit()
        async with cluster.async_on(tenants, tenant_id=4) as pinned, pinned.begin():
            pinned.add(Customer(tenant_id=4, id=1, email="four@example.org"))
        async with cluster.async_atomically() as atomic:
            conn = await atomic.connect(tenants, tenant_id=5)
            await conn.execute(insert(Customer).values(tenant_id=5, id=1, email="five@x"))
        await cluster.aclose()

    asyncio.run(work())
    assert len(rows(cluster)) == 4
    assert entries(cluster) == rows(cluster)


def test_a_session_finds_what_it_has_written_and_others_do_not(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB, city="Rome"))
    with cluster.session() as session, cluster.session() as other:
        session.get_one(Customer, (1, 1)).email = "rob@example.org"
        session.add(Customer(tenant_id=1, id=2, email="new@example.org", city="Rome"))
        session.add(Customer(tenant_id=1, id=0, city="Rome"))

        assert by_email.lookup(session, BOB) == []
        assert [row.id for row in by_email.lookup(session, "rob@example.org")] == [1]
        assert [row.id for row in by_email.lookup(session, "new@example.org")] == [2]
        assert [row.id for row in by_city.lookup(session, "Rome")] == [0, 1, 2]
        assert [row.id for row in by_city.lookup(session, "Rome", limit=1, after=(1, 0))] == [1]
        assert [row.id for row in by_email.lookup(other, BOB)] == [1]
        assert by_email.lookup(other, "new@example.org") == []


@pytest.mark.usefixtures("two_phases")
def test_a_row_that_gets_another_shard_key_keeps_its_entry_where_keys_are_not_unique(
    cluster: ShardCluster,
) -> None:
    target = tenant_on(cluster, "s1")
    start = tenant_on(cluster, "s0")
    put(cluster, Customer(tenant_id=start, id=1, city="Rome"))
    with cluster.session() as session, session.begin():
        moved = session.move_row(session.get_one(Customer, (start, 1)), tenant_id=target)
        assert moved.tenant_id == target

    with cluster.session() as session:
        assert [row.tenant_id for row in by_city.lookup(session, "Rome")] == [target]


def test_who_waits_too_long_for_another_transaction_is_told_to_repeat(
    cluster: ShardCluster, urls: list[URL]
) -> None:
    """The first has claimed and not committed: whether it will, nobody knows yet."""
    claimed, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with cluster.session() as session:
            session.add(Customer(tenant_id=tenant_on(cluster, "s0"), id=1, email=BOB))
            session.flush()
            index = both.before_commit(session.shard_access, session.written_parts)
            assert index is not None
            claimed.set()
            go_on.wait(30)
            session.rollback()

    thread = threading.Thread(target=first)
    thread.start()
    assert claimed.wait(30)
    hasty = ShardIndexes([by_email, by_city], lock_seconds=0.05)
    try:
        with (
            ShardCluster(
                control=urls[0], shards=named(urls), groups=[tenants], indexes=hasty
            ) as other,
            other.session() as session,
        ):
            for shard in ("s0", "s1"):
                session.add(Customer(tenant_id=tenant_on(cluster, shard, nth=1), id=2, email=BOB))
                with pytest.raises(IndexBusyError):
                    session.commit()
                session.rollback()
    finally:
        go_on.set()
        thread.join()
    put(cluster, Customer(tenant_id=1, id=9, email=BOB))
    assert entries(cluster) == rows(cluster)


def test_a_cluster_that_was_not_given_the_index_is_refused(
    cluster: ShardCluster, urls: list[URL]
) -> None:
    with (
        ShardCluster(control=urls[0], shards=named(urls), groups=[tenants]) as other,
        other.session() as session,
    ):
        session.add(Customer(tenant_id=1, id=1, email=BOB))
        with pytest.raises(DBAPIError, match="past index table"):
            session.commit()
    with (
        ShardCluster(
            control=urls[0],
            shards=named(urls),
            groups=[tenants],
            indexes=ShardIndexes([by_city]),
        ) as other,
        other.session() as session,
    ):
        session.add(Customer(tenant_id=1, id=1, email=BOB))
        with pytest.raises(IndexUndeclaredError, match="customer_by_email"):
            session.commit()
    assert rows(cluster) == entries(cluster) == []


def test_old_rows_of_the_notes_are_not_left_behind(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    for engine in cluster.engines.values():
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT count(*) FROM datapatterns.index_change")) == 0
