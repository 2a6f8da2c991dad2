"""Look-ups through an index over shards: few statements, rows or objects, never a wrong one."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, event, select, text

from datapatterns.errors import IndexBusyError, IndexPlaceError, ShardIndexNotReadyError
from datapatterns.index_table import IndexTable
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.sharded_accounts import (
    Account,
    Payment,
    accounts,
    before_statements,
    by_email,
    by_name,
    by_number,
    empty,
    put,
    set_state,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres

EMAILS = [f"{number}@example.org" for number in range(40)]


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with accounts(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    empty(shop)
    set_state(shop, "ready")
    put(
        shop,
        *(
            Account(tenant_id=n % 9, id=n, email=email, number=n % 3, name="Bob")
            for n, email in enumerate(EMAILS)
        ),
    )
    return shop


@contextmanager
def counted(cluster: ShardCluster) -> Iterator[list[str]]:
    """All statements to any shard, by the shard."""
    found: list[str] = []
    sides = cluster.session().shard_access.companions.side_engines
    with ExitStack() as stack:
        for shard, engine in [*cluster.engines.items(), *sides.items()]:

            def note(*arguments: Any, shard: str = shard) -> None:  # noqa: ANN401 -- as SQLAlchemy calls it
                found.append(f"{shard}: {arguments[2]}")

            event.listen(engine, "before_cursor_execute", note)
            stack.callback(event.remove, engine, "before_cursor_execute", note)
        yield found


def test_one_key_takes_a_statement_for_its_entry_and_one_for_its_row(cluster: ShardCluster) -> None:
    with cluster.session() as session, counted(cluster) as statements:
        [row] = by_email.lookup(session, EMAILS[7])

    assert (row.tenant_id, row.id, row.email, row._fields[:2]) == (
        7,
        7,
        EMAILS[7],
        ("tenant_id", "id"),
    )
    assert len(row) == len(Account.__table__.columns)
    assert len(statements) == 2


def test_many_keys_take_one_statement_for_each_shard_of_entries_and_of_rows(
    cluster: ShardCluster,
) -> None:
    with cluster.session() as session, counted(cluster) as statements:
        found = by_email.lookup_many(session, [*EMAILS, "none", EMAILS[0]])

    assert [*found] == [*EMAILS, "none"]
    assert {email: [row.id for row in rows] for email, rows in found.items()} == {
        **{email: [number] for number, email in enumerate(EMAILS)},
        "none": [],
    }
    assert len(statements) <= 4


def test_many_rows_of_a_key_are_read_at_once(cluster: ShardCluster) -> None:
    with cluster.session() as session, counted(cluster) as statements:
        rows = by_number.lookup(session, 1)

    assert [(row.tenant_id, row.id) for row in rows] == sorted(
        (n % 9, n) for n in range(len(EMAILS)) if n % 3 == 1
    )
    assert len(statements) <= 3


def test_pages_of_one_key_follow_each_other(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        whole = [(row.tenant_id, row.id) for row in by_number.lookup(session, 1)]
        after, paged = None, []
        while page := by_number.lookup(session, 1, limit=4, after=after):
            after = page[-1].tenant_id, page[-1].id
            paged += [(row.tenant_id, row.id) for row in page]
        entries = by_number.keys(session, 1, limit=3)
        more = by_number.keys(session, 1, limit=3, after=entries[-1])
        each = by_number.lookup_many(session, [0, 1, 2], limit_per_key=2)

    assert paged == whole
    assert [entry.primary_key for entry in (*entries, *more)] == whole[:6]
    assert [(row.tenant_id, row.id) for row in each[1]] == whole[:2]
    assert [len(rows) for rows in each.values()] == [2, 2, 2]


def test_orphans_take_no_place_in_a_page(cluster: ShardCluster) -> None:
    """Rows that somebody has changed without the index, as a worker that died would have."""
    with cluster.session() as session:
        whole = [(row.tenant_id, row.id) for row in by_number.lookup(session, 1)]
    for engine in cluster.engines.values():
        with engine.begin() as conn:
            conn.execute(text("ALTER TABLE account DISABLE TRIGGER USER"))
            for tenant, number in whole[:5]:
                changed = text("UPDATE account SET number = 7 WHERE (tenant_id, id) = (:t, :i)")
                conn.execute(changed, {"t": tenant, "i": number})
            conn.execute(text("ALTER TABLE account ENABLE TRIGGER USER"))

    with cluster.session() as session:
        page = by_number.lookup(session, 1, limit=4)
        assert [(row.tenant_id, row.id) for row in page] == whole[5:9]
        assert len(by_number.lookup_many(session, [1])[1]) == len(whole) - 5


def test_objects_are_those_of_the_session(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        [bob] = by_email.objects(session, Account, EMAILS[7])
        assert bob is session.get(Account, (7, 7))
        ones = by_number.objects(session, Account, 1, limit=3)
        assert [type(one) for one in ones] == [Account] * 3
        with pytest.raises(ValueError, match="Payment is not mapped to account"):
            by_email.objects(session, Payment, EMAILS[7])


def test_a_session_finds_what_it_has_written_itself(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        session.get_one(Account, (7, 7)).email = "new"
        session.flush()
        session.add(Account(tenant_id=7, id=99, number=1))

        found = by_email.lookup_many(session, ["new", EMAILS[7]])
        assert {email: [row.id for row in rows] for email, rows in found.items()} == {
            "new": [7],
            EMAILS[7]: [],
        }
        assert (7, 99) in [(row.tenant_id, row.id) for row in by_number.lookup(session, 1)]


def test_a_pinned_session_finds_rows_of_its_key_only(cluster: ShardCluster) -> None:
    with cluster.on(tenants, tenant_id=7) as session:
        assert [row.id for row in by_email.lookup(session, EMAILS[7])] == [7]
        assert by_email.lookup(session, EMAILS[8]) == []
        assert {row.tenant_id for row in by_number.lookup(session, 1)} == {7}
        found = by_email.lookup_many(session, EMAILS)
        assert [rows[0].id for rows in found.values() if rows] == [7, 16, 25, 34]
        assert by_email.objects(session, Account, EMAILS[16]) == [session.get(Account, (7, 16))]


def test_tasks_find_rows_as_well(cluster: ShardCluster) -> None:
    async def work() -> None:
        async with cluster, cluster.async_session() as session:
            found = await session.run_sync(by_email.lookup_many, EMAILS)
            assert [rows[0].id for rows in found.values()] == [*range(len(EMAILS))]
            [bob] = await session.run_sync(by_email.objects, Account, EMAILS[7])
            assert bob.id == 7
            statement = select(Account).where(Account.email.in_(EMAILS[:3]))
            assert len((await session.scalars(statement)).all()) == 3

    asyncio.run(work())


def test_keys_of_several_columns_are_tuples(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        assert by_name.lookup_many(session, []) == {}
        with pytest.raises(ValueError, match="a key of index"):
            by_name.lookup(session, "bob")
        with pytest.raises(ValueError, match="has no NULLs"):
            by_email.lookup_many(session, [None])
        with pytest.raises(ValueError, match="ask for at most 1000"):
            by_email.lookup_many(session, [str(number) for number in range(1001)])
        with pytest.raises(ValueError, match="a range is nowhere in order"):
            by_email.keys(session, "a", low="b")


def test_an_index_is_refused_until_it_is_ready(cluster: ShardCluster) -> None:
    set_state(cluster, "building")
    with cluster.session() as session:
        for ask in (by_email.lookup, by_email.keys):
            with pytest.raises(ShardIndexNotReadyError):
                ask(session, EMAILS[0])
        with pytest.raises(ShardIndexNotReadyError):
            by_email.lookup_many(session, EMAILS)


def test_an_index_of_each_database_is_not_asked_over_shards(cluster: ShardCluster) -> None:
    local = IndexTable("account_by_status", on=[Account.status])
    with cluster.session() as session, pytest.raises(IndexPlaceError):
        local.lookup_many(session, ["live"])


def test_a_key_that_is_handed_over_meanwhile_is_followed(cluster: ShardCluster) -> None:
    heir, turns = (tenant_on(cluster, "s0"), 100), iter(range(1))
    put(cluster, Account(tenant_id=heir[0], id=heir[1]))

    def hand_over(_shard: str, _sql: str) -> None:
        for _ in turns:
            with cluster.session() as rival, rival.begin():
                rival.get_one(Account, (7, 7)).email = None
            with cluster.session() as rival, rival.begin():
                rival.get_one(Account, heir).email = EMAILS[7]

    with cluster.session() as session, before_statements(cluster, hand_over):
        assert [row.id for row in by_email.lookup(session, EMAILS[7])] == [100]


def test_a_key_that_never_rests_is_not_waited_for_for_ever(cluster: ShardCluster) -> None:
    rows = [(7, 7), (8, 8)]
    is_busy = False

    def swap(_shard: str, _sql: str) -> None:
        nonlocal is_busy
        if not is_busy:
            is_busy = True
            for row, email in zip(rows, (None, EMAILS[7]), strict=True):
                with cluster.session() as rival, rival.begin():
                    rival.get_one(Account, row).email = email
            rows.reverse()
            is_busy = False

    with (
        cluster.session() as session,
        before_statements(cluster, swap),
        pytest.raises(IndexBusyError),
    ):
        by_email.lookup(session, EMAILS[7])
