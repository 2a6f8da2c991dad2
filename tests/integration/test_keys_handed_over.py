"""Keys of a unique index over shards that go from row to row in one transaction."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import URL, Connection, case, delete, insert, update

from datapatterns.errors import IndexKeyTakenError, IndexKeyTransferError
from datapatterns.index_table.over_shards.entries import Claimed, Entries, Wanted
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import needs_prepared_transactions, prepared
from tests.fixtures.sharded_people import (
    EMAIL,
    Customer,
    both,
    by_city,
    by_email,
    email_on,
    empty,
    entries,
    people,
    rows,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres

BOB, ROB, ANN = "bob@example.org", "rob@example.org", "ann@example.org"
ON_SHARDS = [("s0", "s0"), ("s0", "s1"), ("s1", "s0"), ("s1", "s1")]


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    needs_prepared_transactions(urls[0])
    with people(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> Iterator[ShardCluster]:
    empty(shop)
    yield shop
    assert prepared(shop) == []
    assert entries(shop) == rows(shop)
    assert both.verify(shop, [EMAIL])[EMAIL].clean


def put(cluster: ShardCluster, *customers: Customer) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(customers)


def found(cluster: ShardCluster, email: str) -> list[tuple[int, int]]:
    with cluster.session() as session:
        return [(row.tenant_id, row.id) for row in by_email.lookup(session, email)]


@pytest.mark.parametrize("of_entries", ON_SHARDS)
@pytest.mark.parametrize("of_rows", ON_SHARDS)
def test_two_rows_swap_their_keys(
    cluster: ShardCluster, of_rows: tuple[str, str], of_entries: tuple[str, str]
) -> None:
    one, two = tenant_on(cluster, of_rows[0]), tenant_on(cluster, of_rows[1], nth=1)
    x, y = email_on(cluster, of_entries[0]), email_on(cluster, of_entries[1], nth=1)
    put(
        cluster,
        Customer(tenant_id=one, id=1, email=x, name="One"),
        Customer(tenant_id=two, id=1, email=y, name="Two"),
    )
    with cluster.session(atomic=True) as session, session.begin():
        first, second = session.get_one(Customer, (one, 1)), session.get_one(Customer, (two, 1))
        first.email, second.email = y, x
        session.flush()
        assert [row.tenant_id for row in by_email.lookup(session, x)] == [two]

    assert found(cluster, x) == [(two, 1)]
    assert found(cluster, y) == [(one, 1)]


def test_keys_go_on_along_a_chain_that_begins_with_a_new_one(cluster: ShardCluster) -> None:
    emails = [email_on(cluster, shard, nth=nth) for nth in range(3) for shard in ("s0", "s1")]
    put(cluster, *(Customer(tenant_id=at, id=1, email=each) for at, each in enumerate(emails[:5])))
    with cluster.session(atomic=True) as session, session.begin():
        for at, email in enumerate(emails[1:]):
            session.get_one(Customer, (at, 1)).email = email

    assert found(cluster, emails[0]) == []
    assert [found(cluster, each) for each in emails[1:]] == [[(at, 1)] for at in range(5)]


@pytest.mark.parametrize("number", [90, 150])
def test_all_keys_go_round(cluster: ShardCluster, number: int) -> None:
    """Whoever locks more than 100 keys locks the index."""
    emails = [f"{at}@example.org" for at in range(number)]
    put(cluster, *(Customer(tenant_id=at, id=1, email=each) for at, each in enumerate(emails)))
    with cluster.session(atomic=True) as session, session.begin():
        for at in range(number):
            session.get_one(Customer, (at, 1)).email = emails[at - 1]

    assert found(cluster, emails[-1]) == [(0, 1)]
    assert len(rows(cluster)) == number


def test_a_new_row_takes_the_key_of_one_that_goes(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB, city="Rome"))
    with cluster.atomically() as work:
        work.connect(tenants, tenant_id=1).execute(delete(Customer))
        new = insert(Customer).values(tenant_id=2, id=1, email=BOB, city="Rome")
        work.connect(tenants, tenant_id=2).execute(new)

    assert found(cluster, BOB) == [(2, 1)]
    with cluster.session() as session:
        assert [row.tenant_id for row in by_city.lookup(session, "Rome")] == [2]


def test_one_statement_swaps_keys_in_another_time_zone(cluster: ShardCluster) -> None:
    put(
        cluster,
        Customer(tenant_id=1, id=1, email=BOB),
        Customer(tenant_id=1, id=2, email=ROB),
    )
    with cluster.atomically() as work:
        conn = work.connect(tenants, tenant_id=1)
        conn.exec_driver_sql("SET LOCAL DateStyle = 'German'")
        swapped = case({BOB: ROB, ROB: BOB}, value=Customer.email)
        conn.execute(update(Customer).values(email=swapped))

    assert (found(cluster, BOB), found(cluster, ROB)) == ([(1, 2)], [(1, 1)])


@pytest.mark.parametrize("to", ["s0", "s1"])
def test_a_row_with_a_unique_key_gets_another_shard_key(cluster: ShardCluster, to: str) -> None:
    start, target = tenant_on(cluster, "s0"), tenant_on(cluster, to, nth=1)
    back = tenant_on(cluster, "s0", nth=2)
    put(cluster, Customer(tenant_id=start, id=1, email=BOB, name="Bob"))
    with cluster.session() as session, session.begin():
        session.move_row(session.get_one(Customer, (start, 1)), tenant_id=target)
    assert found(cluster, BOB) == [(target, 1)]

    with cluster.atomically() as work:
        work.move_row(Customer, {"tenant_id": target, "id": 1}, tenant_id=back)
    assert found(cluster, BOB) == [(back, 1)]


def test_keys_are_handed_over_on_asyncio(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB), Customer(tenant_id=2, id=1, email=ROB))

    async def swap() -> None:
        async with cluster.async_session(atomic=True) as session, session.begin():
            first = await session.get_one(Customer, (1, 1))
            second = await session.get_one(Customer, (2, 1))
            first.email, second.email = ROB, BOB
        await cluster.aclose()

    asyncio.run(swap())
    assert (found(cluster, BOB), found(cluster, ROB)) == ([(2, 1)], [(1, 1)])


def test_an_entry_that_is_missing_is_made_by_who_takes_its_key(cluster: ShardCluster) -> None:
    """As while the index is being built."""
    put(cluster, Customer(tenant_id=1, id=1, email=BOB), Customer(tenant_id=2, id=1))
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.exec_driver_sql("TRUNCATE customer_by_email")
    with cluster.session(atomic=True) as session, session.begin():
        session.get_one(Customer, (1, 1)).email = None
        session.get_one(Customer, (2, 1)).email = BOB

    assert found(cluster, BOB) == [(2, 1)]


def test_what_is_rolled_back_is_handed_over_to_nobody(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB), Customer(tenant_id=2, id=1, email=ROB))
    put(cluster, Customer(tenant_id=3, id=1, email=ANN))
    with cluster.session(atomic=True) as session:
        first, second = session.get_one(Customer, (1, 1)), session.get_one(Customer, (2, 1))
        first.email, second.email = ROB, BOB
        session.add(Customer(tenant_id=4, id=1, email=ANN))
        with pytest.raises(IndexKeyTakenError):
            session.commit()

    assert (found(cluster, BOB), found(cluster, ROB)) == ([(1, 1)], [(2, 1)])


def test_who_was_refused_half_way_and_mends_it_leaves_no_entry_that_he_had_changed(
    cluster: ShardCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB), Customer(tenant_id=2, id=1, email=ROB))
    replaced = Entries.replaced

    def refuse_rob(self: Entries, conn: Connection, seen: Claimed, by: Wanted, **how: bool) -> bool:
        if by.entry.key == (ROB,):
            raise IndexKeyTakenError(EMAIL)
        return replaced(self, conn, seen, by, **how)

    with cluster.session(atomic=True) as session:
        first, second = session.get_one(Customer, (1, 1)), session.get_one(Customer, (2, 1))
        first.email, second.email = ROB, BOB
        session.flush()
        monkeypatch.setattr(Entries, "replaced", refuse_rob)
        with pytest.raises(IndexKeyTakenError):
            session.commit()
        monkeypatch.undo()
        first.email, second.email, first.name = BOB, ROB, "Bob"
        session.commit()

    assert (found(cluster, BOB), found(cluster, ROB)) == ([(1, 1)], [(2, 1)])


def test_without_a_transaction_over_shards_it_is_refused_with_advice(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    for session in (cluster.session(), cluster.on(tenants, tenant_id=1)):
        with session:
            session.get_one(Customer, (1, 1)).email = None
            session.flush()
            session.add(Customer(tenant_id=1, id=2, email=BOB))
            with pytest.raises(IndexKeyTransferError, match=r"session\(atomic=True\)"):
                session.commit()

    assert found(cluster, BOB) == [(1, 1)]
