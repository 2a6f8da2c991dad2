"""Index tables over shards: rows are found by a column that is not their shard key."""

from collections.abc import Iterator

import pytest
from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    DateTime,
    MetaData,
    Numeric,
    Table,
    Text,
    delete,
    insert,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.exc import DBAPIError

from datapatterns import DataLayer
from datapatterns.errors import (
    IndexDefinitionError,
    IndexKeyTakenError,
    IndexKeyTransferError,
    IndexPlaceError,
)
from datapatterns.index_table import IndexTable, ShardIndexes
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.atomic import needs_prepared_transactions
from tests.fixtures.sharded_people import (
    Customer,
    both,
    by_city,
    by_email,
    email_on,
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
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with people(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    empty(shop)
    return shop


def put(cluster: ShardCluster, *customers: Customer) -> None:
    with cluster.session(atomic=True) as session, session.begin():
        session.add_all(customers)


def found(cluster: ShardCluster, email: str) -> list[tuple[int, int]]:
    with cluster.session() as session:
        return [(row.tenant_id, row.id) for row in by_email.lookup(session, email)]


@pytest.mark.parametrize(("of_row", "of_entry"), [("s0", "s0"), ("s0", "s1"), ("s1", "s0")])
def test_a_row_is_found_wherever_its_entry_is(
    cluster: ShardCluster, of_row: str, of_entry: str
) -> None:
    tenant, email = tenant_on(cluster, of_row), email_on(cluster, of_entry)
    put(cluster, Customer(tenant_id=tenant, id=1, email=email, name="Bob"))

    assert found(cluster, email) == [(tenant, 1)]
    assert entries(cluster) == rows(cluster) == [(email, tenant, 1, "Bob")]
    with cluster.session() as session:
        [entry] = by_email.keys(session, email)
        assert (entry.key, entry.primary_key) == ((email,), (tenant, 1))
        assert entry.included == {"name": "Bob"}


def test_a_changed_key_is_found_and_the_old_one_is_not(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    with cluster.session() as session, session.begin():
        session.get_one(Customer, (1, 1)).email = "rob@example.org"

    assert found(cluster, BOB) == []
    assert found(cluster, "rob@example.org") == [(1, 1)]
    assert entries(cluster) == rows(cluster)


def test_a_deleted_row_leaves_no_entry(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    with cluster.session() as session, session.begin():
        session.delete(session.get_one(Customer, (1, 1)))

    assert entries(cluster) == rows(cluster) == []


def test_a_key_that_is_null_has_no_entry(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1), Customer(tenant_id=2, id=1))

    assert entries(cluster) == []


@pytest.mark.parametrize("other", ["s0", "s1"])
def test_a_second_row_with_a_unique_key_is_refused_on_every_shard(
    cluster: ShardCluster, other: str
) -> None:
    put(cluster, Customer(tenant_id=tenant_on(cluster, "s0"), id=1, email=BOB))
    tenant = tenant_on(cluster, other, nth=1)

    with pytest.raises(IndexKeyTakenError):
        put(cluster, Customer(tenant_id=tenant, id=2, email=BOB))

    assert len(rows(cluster)) == 1
    assert entries(cluster) == rows(cluster)


def test_a_refused_commit_gives_up_what_it_had_claimed(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email="m@example.org"))

    with pytest.raises(IndexKeyTakenError):
        put(
            cluster,
            Customer(tenant_id=2, id=1, email="a@example.org", city="Rome"),
            Customer(tenant_id=2, id=2, email="m@example.org"),
            Customer(tenant_id=2, id=3, email="z@example.org"),
        )

    assert [entry[0] for entry in entries(cluster)] == ["m@example.org"]
    with cluster.session() as session:
        assert by_city.keys(session, "Rome") == []


def test_a_refused_session_can_mend_what_is_wrong_and_commit(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    with cluster.session() as session:
        second = Customer(tenant_id=2, id=1, email=BOB, name="Bob")
        session.add(second)
        with pytest.raises(IndexKeyTakenError):
            session.commit()
        second.email = "other@example.org"
        session.commit()

    assert found(cluster, "other@example.org") == [(2, 1)]
    assert entries(cluster) == rows(cluster)


def test_two_rows_of_one_transaction_with_one_key_are_refused(cluster: ShardCluster) -> None:
    with pytest.raises(IndexKeyTakenError):
        put(
            cluster,
            Customer(tenant_id=1, id=1, email=BOB),
            Customer(tenant_id=2, id=1, email=BOB),
        )

    assert entries(cluster) == rows(cluster) == []


def test_a_key_that_one_row_gives_to_another_is_refused(cluster: ShardCluster) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))

    with cluster.session() as session:
        session.get_one(Customer, (1, 1)).email = None
        session.flush()
        session.add(Customer(tenant_id=1, id=2, email=BOB))
        with pytest.raises(IndexKeyTransferError, match="commit in between"):
            session.commit()

    assert found(cluster, BOB) == [(1, 1)]


def test_rows_of_one_key_that_is_not_unique_are_all_found(cluster: ShardCluster) -> None:
    for tenant in range(9):
        put(cluster, Customer(tenant_id=tenant, id=1, city="Rome"))
    put(cluster, Customer(tenant_id=1, id=2, city="Oslo"))
    with cluster.session() as session, session.begin():
        session.get_one(Customer, (3, 1)).city = "Oslo"

    with cluster.session() as session:
        in_rome = by_city.lookup(session, "Rome")
        assert [row.tenant_id for row in in_rome] == [0, 1, 2, 4, 5, 6, 7, 8]
        page = by_city.lookup(session, "Rome", limit=3, after=(2, 1))
        assert [row.tenant_id for row in page] == [4, 5, 6]
        assert {(row.tenant_id, row.id) for row in by_city.lookup(session, "Oslo")} == {
            (1, 2),
            (3, 1),
        }


def test_what_is_written_without_objects_is_kept_as_well(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        values = [{"tenant_id": 1, "id": n, "email": f"{n}@example.org"} for n in range(5)]
        session.execute(insert(Customer), values)
        session.execute(
            update(Customer)
            .where(Customer.tenant_id == 1, Customer.id < 3)
            .values(email="new-" + Customer.email)
        )
        session.execute(delete(Customer).where(Customer.tenant_id == 1, Customer.id == 4))

    assert [entry[0] for entry in entries(cluster)] == [
        "3@example.org",
        *(f"new-{n}@example.org" for n in range(3)),
    ]
    assert entries(cluster) == rows(cluster)


def test_a_savepoint_that_is_rolled_back_leaves_no_claim(cluster: ShardCluster) -> None:
    with cluster.session() as session, session.begin():
        session.add(Customer(tenant_id=1, id=1, email=BOB))
        session.flush()
        nested = session.begin_nested()
        session.add(Customer(tenant_id=1, id=2, email="gone@example.org"))
        session.flush()
        nested.rollback()

    assert [entry[0] for entry in entries(cluster)] == [BOB]
    assert entries(cluster) == rows(cluster)


def test_who_writes_past_the_session_is_refused_when_he_commits(cluster: ShardCluster) -> None:
    with (
        pytest.raises(DBAPIError, match="past index table customer_by_email") as refused,
        cluster.connect(tenants, tenant_id=1) as conn,
        conn.begin(),
    ):
        conn.execute(insert(Customer).values(tenant_id=1, id=1, email=BOB))

    assert getattr(refused.value.orig, "sqlstate", None) == "SD003"
    assert rows(cluster) == []


def test_a_transaction_over_several_shards_keeps_the_index(cluster: ShardCluster) -> None:
    needs_prepared_transactions(cluster.engines["s0"].url)
    first, second = tenant_on(cluster, "s0"), tenant_on(cluster, "s1")
    with cluster.atomically() as work:
        for tenant in (first, second):
            conn = work.connect(tenants, tenant_id=tenant)
            conn.execute(insert(Customer).values(tenant_id=tenant, id=1, email=f"{tenant}@x"))

    assert found(cluster, f"{first}@x") == [(first, 1)]
    assert found(cluster, f"{second}@x") == [(second, 1)]


def test_an_entry_that_leads_nowhere_is_no_answer_and_in_nobodys_way(
    cluster: ShardCluster,
) -> None:
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    with cluster.engines[shard_of(cluster, 1)].begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = 'replica'"))
        conn.execute(text("DELETE FROM customer"))

    assert found(cluster, BOB) == []
    put(cluster, Customer(tenant_id=2, id=1, email=BOB))
    assert found(cluster, BOB) == [(2, 1)]
    assert entries(cluster) == rows(cluster)


def test_only_rows_and_keys_that_can_be_kept_are_accepted() -> None:
    priced = Table(
        "priced", MetaData(), Column("id", BigInteger, primary_key=True), Column("at", Numeric)
    )
    with pytest.raises(IndexDefinitionError, match="Numeric"):
        IndexTable("by_price", on=[priced.c.at], mode="reserve")
    with pytest.raises(IndexDefinitionError, match="begin with a text"):
        IndexTable("by_time", on=[type_coerce(priced.c.at, DateTime)], mode="reserve")
    with pytest.raises(IndexDefinitionError, match="cannot name a group"):
        IndexTable("By Email", on=[Customer.email], mode="reserve")
    with pytest.raises(IndexDefinitionError, match="another is called so"):
        IndexTable("customer_by_email", on=[Customer.email], mode="reserve")
    with pytest.raises(IndexDefinitionError, match="mode be 'reserve'"):
        ShardIndexes([IndexTable("local_by_email", on=[Customer.email])])


def test_what_an_index_over_shards_cannot_do_in_one_database_is_refused(
    cluster: ShardCluster,
) -> None:
    with (
        cluster.engines["s0"].connect() as conn,
        pytest.raises(IndexPlaceError, match="session over the shards"),
    ):
        by_email.lookup(conn, BOB)
    with cluster.session() as session, pytest.raises(IndexPlaceError, match="'reserve'"):
        IndexTable("local_by_name", on=[Customer.name]).lookup(session, "Bob")


def test_its_rows_are_those_of_a_sharded_table(cluster: ShardCluster) -> None:
    table = both.indexes["customer_by_email"].table
    put(cluster, Customer(tenant_id=1, id=1, email=BOB))
    with cluster.session() as session:
        assert session.execute(select(table.c.id).where(table.c.email == BOB)).all() == [(1,)]


def test_how_many_buckets_there_are_is_declared_for_indexes_over_shards_alone() -> None:
    person = Table(
        "person", MetaData(), Column("id", BigInteger, primary_key=True), Column("email", Text)
    )
    spread = IndexTable("person_by_email", on=[person.c.email], mode="reserve", buckets=8)

    [group] = ShardIndexes([spread]).groups
    assert group.strategy.buckets == 8
    with pytest.raises(IndexDefinitionError, match="only an index over shards has buckets"):
        IndexTable("person_by_name", on=[person.c.email], mode="local", buckets=8)


def test_an_index_over_shards_is_none_of_one_database() -> None:
    with pytest.raises(IndexPlaceError, match="ShardIndexes"):
        DataLayer(indexes=[by_email])
