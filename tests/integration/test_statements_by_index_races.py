"""Statements whose rows an index finds, while others change who has the keys."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, Select, func, select, update

from datapatterns.errors import IndexBusyError
from datapatterns.sharding import ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.sharded_accounts import (
    Account,
    accounts,
    before_statements,
    empty,
    put,
    set_state,
    tenant_on,
    tenants,
)

pytestmark = pytest.mark.postgres

BOB, ANN = "bob@example.org", "ann@example.org"
columns = select(Account.tenant_id, Account.id)


@pytest.fixture(scope="module")
def shop(databases: Databases) -> Iterator[ShardCluster]:
    urls: list[URL] = [databases.new() for _ in range(2)]
    with accounts(urls) as cluster:
        yield cluster
    for url in urls:
        databases.drop(url)


@pytest.fixture
def cluster(shop: ShardCluster) -> ShardCluster:
    """Bob and Ann on the first shard, somebody without an email on the second."""
    empty(shop)
    put(
        shop,
        Account(tenant_id=tenant_on(shop, "s0"), id=1, email=BOB, number=1, balance=1),
        Account(tenant_id=tenant_on(shop, "s0", nth=1), id=2, email=ANN, number=1, balance=2),
        Account(tenant_id=tenant_on(shop, "s1"), id=3, balance=3),
    )
    return shop


def give(cluster: ShardCluster, email: str, *, to: tuple[int, int]) -> None:
    """Let another row have an email, as two commits."""
    with cluster.session() as session, session.begin():
        owner = session.scalars(select(Account).where(Account.email == email)).one()
        owner.email = None
    with cluster.session() as session, session.begin():
        session.get_one(Account, to).email = email


@contextmanager
def in_between(
    cluster: ShardCluster, happens: Callable[[], object], *, times: int = 1
) -> Iterator[None]:
    """Let something happen after an index was read, and before rows are."""
    left, is_busy = times, False

    def tell(_shard: str, _sql: str) -> None:
        nonlocal left, is_busy
        if left and not is_busy:
            left, is_busy = left - 1, True
            happens()
            is_busy = False

    with before_statements(cluster, tell):
        yield
    assert left == 0


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (select(Account.id).where(Account.email == BOB), [(3,)]),
        (select(func.count()).select_from(Account).where(Account.email == BOB), [(1,)]),
        (select(Account.id).where(Account.email == BOB, Account.balance > 0), [(3,)]),
        (select(Account.id).where(Account.email == BOB).limit(1), [(3,)]),
        (
            select(Account.id).where(Account.email.in_([BOB, ANN])).order_by(Account.id),
            [(2,), (3,)],
        ),
        (select(func.sum(Account.balance)).where(Account.email.in_([BOB, ANN])), [(5,)]),
    ],
    ids=str,
)
def test_a_key_that_is_handed_over_meanwhile_is_followed(
    cluster: ShardCluster, statement: Select[*tuple[Any, ...]], expected: list[Any]
) -> None:
    heir = tenant_on(cluster, "s1"), 3
    with cluster.session() as session, in_between(cluster, lambda: give(cluster, BOB, to=heir)):
        assert session.execute(statement).all() == expected


def test_an_object_is_found_by_a_key_that_is_handed_over_meanwhile(cluster: ShardCluster) -> None:
    heir = tenant_on(cluster, "s1"), 3
    found = select(Account).where(Account.email == BOB)
    with cluster.session() as session, in_between(cluster, lambda: give(cluster, BOB, to=heir)):
        assert session.scalars(found).one() is session.get(Account, heir)


@pytest.mark.parametrize("returning", [True, False])
def test_a_row_is_changed_whose_key_was_handed_over_meanwhile(
    cluster: ShardCluster, *, returning: bool
) -> None:
    heir = tenant_on(cluster, "s1"), 3
    changed = (
        update(Account).where(Account.email.in_([BOB, ANN])).values(balance=Account.balance + 10)
    )
    with (
        cluster.session(atomic=True) as session,
        session.begin(),
        in_between(cluster, lambda: give(cluster, BOB, to=heir)),
    ):
        result: Any = session.execute(changed.returning(Account.id) if returning else changed)
        if returning:
            assert sorted(result.all()) == [(2,), (3,)]
        else:
            assert result.rowcount == 2

    with cluster.session(scatter=True) as session:
        balances = session.execute(select(Account.id, Account.balance).order_by(Account.id)).all()
        assert balances == [(1, 1), (2, 12), (3, 13)]


@pytest.mark.parametrize("returning", [True, False])
def test_a_row_is_changed_that_gets_its_key_back_meanwhile(
    cluster: ShardCluster, *, returning: bool
) -> None:
    turns = iter([(tenant_on(cluster, "s1"), 3), (tenant_on(cluster, "s0"), 1)])
    changed = update(Account).where(Account.email == BOB).values(balance=Account.balance + 10)
    with (
        cluster.session(atomic=True) as session,
        session.begin(),
        in_between(cluster, lambda: give(cluster, BOB, to=next(turns)), times=2),
    ):
        result: Any = session.execute(changed.returning(Account.id) if returning else changed)
        if returning:
            assert result.all() == [(1,)]
        else:
            assert result.rowcount == 1
    with cluster.session(scatter=True) as session:
        balances = session.execute(select(Account.id, Account.balance).order_by(Account.id)).all()
        assert balances == [(1, 11), (2, 2), (3, 3)]


def test_a_change_says_so_if_a_key_goes_from_row_to_row_all_the_time(
    cluster: ShardCluster,
) -> None:
    turns = iter([(tenant_on(cluster, "s1"), 3), (tenant_on(cluster, "s0"), 1)] * 3)
    changed = update(Account).where(Account.email == BOB).values(balance=10)
    with (
        cluster.session(atomic=True) as session,
        in_between(cluster, lambda: give(cluster, BOB, to=next(turns)), times=5),
        pytest.raises(IndexBusyError),
    ):
        session.execute(changed)


def test_a_change_says_so_if_the_index_can_not_be_read_any_more(cluster: ShardCluster) -> None:
    def hand_on_and_stop() -> None:
        give(cluster, BOB, to=(tenant_on(cluster, "s1"), 3))
        set_state(cluster, "building", index="account_by_email")

    changed = update(Account).where(Account.email.in_([BOB, ANN])).values(balance=10)
    try:
        with (
            cluster.session(atomic=True) as session,
            in_between(cluster, hand_on_and_stop),
            pytest.raises(IndexBusyError),
        ):
            session.execute(changed)
    finally:
        set_state(cluster, "ready")


def test_a_row_whose_key_is_given_up_meanwhile_is_not_found(cluster: ShardCluster) -> None:
    def give_up() -> None:
        with cluster.session() as rival, rival.begin():
            rival.get_one(Account, (tenant_on(cluster, "s0"), 1)).email = None

    with cluster.session() as session, in_between(cluster, give_up):
        assert session.execute(select(Account).where(Account.email == BOB)).all() == []


def test_a_key_that_goes_from_row_to_row_all_the_time_is_asked_of_all_shards(
    cluster: ShardCluster,
) -> None:
    heirs = [(tenant_on(cluster, "s1"), 3), (tenant_on(cluster, "s0"), 1)] * 3
    turns = iter(heirs)
    found = select(Account.id).where(Account.email == BOB)

    def hand_on() -> None:
        give(cluster, BOB, to=next(turns))

    with (
        cluster.session() as session,
        in_between(cluster, hand_on, times=5),
        pytest.raises(IndexBusyError),
    ):
        session.execute(found)
    with cluster.session(scatter=True) as session:
        assert session.execute(found).all() == [(3,)]


def test_what_was_committed_before_the_statement_is_found_at_once(cluster: ShardCluster) -> None:
    with cluster.session() as session:
        assert session.execute(select(Account.id).where(Account.email == "new")).all() == []
        put(cluster, Account(tenant_id=tenant_on(cluster, "s0"), id=9, email="new"))
        assert session.execute(select(Account.id).where(Account.email == "new")).all() == [(9,)]


def test_rows_are_found_while_their_bucket_moves(cluster: ShardCluster) -> None:
    tenant = tenant_on(cluster, "s0")
    found = select(Account.id).where(Account.number == 1).order_by(Account.id)

    bucket = cluster.router.map_of(tenants).strategy.bucket(tenant)
    with cluster.session() as session:
        assert session.scalars(found).all() == [1, 2]
    cluster.move(tenants, bucket, to="s1")
    with cluster.session() as session:
        assert session.scalars(found).all() == [1, 2]
        assert session.scalars(select(Account.id).where(Account.email == BOB)).all() == [1]
