"""Statements that name no shard key, but a key of an index over shards, go where the rows are."""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    URL,
    Numeric,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from datapatterns.errors import ScatterRefusedError, SettingsError, UnmergeableQueryError
from datapatterns.sharding import AllShards, ShardCluster
from datapatterns.testing import Databases
from tests.fixtures.sharded_accounts import (
    Account,
    Payment,
    accounts,
    asked,
    email_on,
    empty,
    put,
    set_state,
    shard_of,
    tenant_on,
)

pytestmark = pytest.mark.postgres

BOB = "bob@example.org"
EVERYWHERE = {"index": None, "scatter": True}
TOKENS = [UUID(int=number) for number in range(20)]


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
    return shop


@pytest.fixture
def filled(cluster: ShardCluster) -> ShardCluster:
    put(
        cluster,
        *(
            Account(
                tenant_id=number % 7,
                id=number,
                email=f"{number}@example.org" if number % 5 else None,
                number=number % 4,
                token=TOKENS[number],
                name="ABCD"[number % 4] * 2,
                opened_on=date(2026, 1, 1 + number % 3),
                status="live" if number % 6 else "dead",
                balance=number,
            )
            for number in range(20)
        ),
        *(
            Payment(tenant_id=number % 7, id=number, account_id=number, amount=Decimal(number) / 4)
            for number in range(0, 20, 2)
        ),
    )
    return cluster


def rows_of(session: Session, statement: Select[*tuple[Any, ...]], **parameters: Any) -> list[Any]:  # noqa: ANN401 -- of any statement
    return [tuple(row) for row in session.execute(statement, parameters)]


def agree(cluster: ShardCluster, statement: Select[*tuple[Any, ...]], **parameters: Any) -> int:  # noqa: ANN401 -- of any statement
    """Return on how many shards an index has found the answer that all shards together give."""
    with cluster.session() as session:
        with asked(cluster) as shards:
            found = rows_of(session, statement, **parameters)
        expected = rows_of(session, statement.execution_options(**EVERYWHERE), **parameters)
    if "ORDER BY" not in str(statement):
        found, expected = sorted(found, key=repr), sorted(expected, key=repr)
    assert found == expected
    return len({*shards})


@pytest.mark.parametrize(("of_row", "of_entry"), [("s0", "s0"), ("s0", "s1"), ("s1", "s0")])
def test_an_object_is_read_on_its_own_shard_only(
    cluster: ShardCluster, of_row: str, of_entry: str
) -> None:
    tenant, email = tenant_on(cluster, of_row), email_on(cluster, of_entry)
    put(cluster, Account(tenant_id=tenant, id=1, email=email))

    with cluster.session() as session, asked(cluster) as shards:
        bob = session.scalars(select(Account).where(Account.email == email)).one()

        assert (bob.tenant_id, bob.id) == (tenant, 1)
        assert shards == [of_row]
        assert session.get(Account, (tenant, 1)) is bob


columns = select(Account.tenant_id, Account.id)
joined = select(Account.id, Payment.amount).join(
    Payment, and_(Payment.tenant_id == Account.tenant_id, Payment.account_id == Account.id)
)
other = aliased(Account)


@pytest.mark.parametrize(
    "statement",
    [
        columns.where(Account.email == "1@example.org"),
        columns.where(Account.email == "1@example.org", Account.balance > 5),
        columns.where(and_(Account.email == "1@example.org", Account.status == "live")),
        columns.filter_by(email="1@example.org"),
        columns.where(Account.token == TOKENS[3]),
        select(other.id).where(other.token == TOKENS[3]),
        select(Account.__table__.c.id).where(Account.__table__.c.email == "1@example.org"),
        select(func.count()).select_from(Account).where(Account.email == "1@example.org"),
        select(func.sum(Account.balance)).where(Account.email == "1@example.org"),
        joined.where(Account.email == "2@example.org"),
        joined.where(Account.token == TOKENS[4]).order_by(Payment.id).limit(1),
        columns.where(Account.email == "none@example.org"),
        select(func.count()).select_from(Account).where(Account.email == "none@example.org"),
        columns.where(Account.email.in_([])),
        columns.where(Account.email.in_([None])),
        columns.where(Account.email == bindparam("e", None, Text)),
        columns.where(Account.email == "1@example.org", Account.email == "2@example.org"),
        columns.where(Account.email.in_(["1@example.org", "1@example.org"])),
    ],
    ids=str,
)
def test_one_row_is_found_on_one_shard(
    filled: ShardCluster, statement: Select[*tuple[Any, ...]]
) -> None:
    assert agree(filled, statement) <= 1


@pytest.mark.parametrize(
    "statement",
    [
        columns.where(Account.number == 1),
        columns.where(Account.number == 1).order_by(Account.id.desc()).limit(3),
        columns.where(Account.number.in_([0, 2, 2, None])),
        columns.where(Account.email.in_([f"{n}@example.org" for n in range(30)])),
        columns.where(tuple_(Account.number, Account.balance).in_([(1, 5), (2, 2)])),
        select(func.count(), func.max(Account.balance)).where(Account.number == 3),
        select(Account.status, func.count()).where(Account.number == 0).group_by(Account.status),
        select(Account.balance).where(Account.number.in_([0, 1])).distinct(),
        joined.where(Account.number == 2),
        joined.where(Account.number == 2).order_by(Payment.amount.desc(), Account.id).limit(2),
        columns.where(Account.number == 1, Account.email == "1@example.org"),
        select(other.id)
        .join(Account, and_(Account.tenant_id == other.tenant_id))
        .where(other.email == "1@example.org"),
        columns.where(
            func.lower(Account.name).in_(["aa", "bb"]),
            Account.opened_on.in_([date(2026, 1, 1), date(2026, 1, 2)]),
            Account.status == "live",
        ),
    ],
    ids=str,
)
def test_rows_on_several_shards_are_merged_as_always(
    filled: ShardCluster, statement: Select[*tuple[Any, ...]]
) -> None:
    agree(filled, statement)


@pytest.mark.parametrize(
    "statement",
    [
        columns.where(or_(Account.email == "1@example.org", Account.balance == 2)),
        columns.where(not_(Account.email == "1@example.org")),
        columns.where(Account.email != "1@example.org"),
        columns.where(Account.email.is_(None)),
        columns.where(Account.email > "1@example.org"),
        columns.where(Account.email.not_in(["1@example.org"])),
        columns.where(func.upper(Account.email) == "1@EXAMPLE.ORG"),
        columns.where(Account.email.collate("C") == "1@example.org"),
        columns.where(func.lower(Account.name) == "aa", Account.opened_on == date(2026, 1, 2)),
        columns.where(func.lower(Account.name) == "aa", Account.status == "live"),
        columns.where(
            func.lower(Account.name) == "aa",
            Account.opened_on == date(2026, 1, 2),
            Account.status == "dead",
        ),
        columns.where(Account.number == Decimal("1.0")),
        columns.where(Account.number == 1.5),
        columns.where(Account.number == literal(1, Numeric)),
        columns.where(cast(Account.number, Text) == "1"),
        columns.where(Account.email == func.lower("1@EXAMPLE.ORG")),
        columns.where(Account.number == Account.balance),
    ],
    ids=str,
)
def test_what_an_index_cannot_tell_is_asked_of_all_shards(
    filled: ShardCluster, statement: Select[*tuple[Any, ...]]
) -> None:
    with filled.session() as session, pytest.raises(ScatterRefusedError):
        session.execute(statement)

    with filled.session(scatter=True) as session:
        expected = rows_of(session, statement.execution_options(**EVERYWHERE))
        assert sorted(rows_of(session, statement)) == sorted(expected)


@pytest.mark.parametrize("value", [2**31, 2**70, -(2**31) - 1])
def test_a_value_that_a_key_cannot_hold_is_an_error_as_always(
    filled: ShardCluster, value: int
) -> None:
    statement = columns.where(Account.number == value)
    for options in ({}, {"index": None}):
        with filled.session(scatter=True) as session, pytest.raises(DataError):
            session.execute(statement, execution_options=options)


def test_parameters_are_those_that_the_statement_is_executed_with(filled: ShardCluster) -> None:
    named = columns.where(Account.email == bindparam("email"))
    listed = columns.where(Account.email.in_(bindparam("emails", expanding=True)))
    kept = named.params(email="3@example.org")

    for email in ("1@example.org", "2@example.org", "none", None):
        assert agree(filled, named, email=email) <= 1
    agree(filled, listed, emails=["1@example.org", "2@example.org"])
    agree(filled, listed, emails=[])
    assert agree(filled, kept) == 1
    assert agree(filled, columns.where(Account.number == bindparam("n")), n=3) >= 1


def test_a_computed_value_is_computed_once(filled: ShardCluster) -> None:
    values = iter(["1@example.org", "2@example.org"])
    statement = columns.where(Account.email == bindparam("e", callable_=lambda: next(values)))

    with filled.session() as session:
        assert session.execute(statement).all() == [(1, 1)]


def test_the_condition_of_an_index_may_be_a_parameter(filled: ShardCluster) -> None:
    statement = columns.where(
        func.lower(Account.name) == "bb",
        Account.opened_on == date(2026, 1, 2),
        Account.status == bindparam("status"),
    )
    with filled.session() as session:
        assert rows_of(session, statement, status="live")
        with pytest.raises(ScatterRefusedError):
            session.execute(statement, {"status": "dead"})


def test_relationships_are_loaded_as_always(filled: ShardCluster) -> None:
    for option in (selectinload(Account.payments), joinedload(Account.payments)):
        statement = select(Account).where(Account.token == TOKENS[4]).options(option)
        with filled.session() as session:
            account = session.scalars(statement).unique().one()
            assert [payment.amount for payment in account.payments] == [Decimal(1)]


def test_a_subquery_and_an_exists_keep_to_the_rows_of_the_index(filled: ShardCluster) -> None:
    paid = (
        select(Payment.id)
        .where(Payment.tenant_id == Account.tenant_id, Payment.account_id == Account.id)
        .exists()
    )
    with filled.session() as session, pytest.raises((ScatterRefusedError, UnmergeableQueryError)):
        session.execute(columns.where(Account.token == TOKENS[4], paid)).all()


def test_rows_stream_as_always(filled: ShardCluster) -> None:
    statement = columns.where(Account.number == 1).execution_options(yield_per=2)
    with filled.session() as session:
        assert len(session.execute(statement).all()) == 5


def test_an_index_that_is_not_ready_is_not_read(filled: ShardCluster) -> None:
    statement = columns.where(Account.email == "1@example.org")
    for state in ("building", "verifying", "failed"):
        set_state(filled, state, index="account_by_email")
        with filled.session() as session, pytest.raises(ScatterRefusedError):
            session.execute(statement)
        with filled.session(scatter=True) as session:
            assert session.execute(statement).all() == [(1, 1)]


def test_an_index_is_left_out_or_chosen_by_an_option(filled: ShardCluster) -> None:
    statement = columns.where(Account.email == "1@example.org", Account.number == 1)
    with filled.session() as session:
        for chosen in ("account_by_email", "account_by_number"):
            found = session.execute(statement, execution_options={"index": chosen})
            assert found.all() == [(1, 1)]
        for other_one in (None, "account_by_token"):
            with pytest.raises(ScatterRefusedError):
                session.execute(statement, execution_options={"index": other_one})
        with pytest.raises(SettingsError, match="neither an index's name nor None"):
            session.execute(statement, execution_options={"index": 7})


def test_all_shards_are_asked_if_they_are_named(filled: ShardCluster) -> None:
    statement = columns.where(Account.email == "1@example.org")
    with filled.session() as session, asked(filled) as shards:
        options = {"shard": AllShards()}
        assert session.execute(statement, execution_options=options).all() == [(1, 1)]
    assert {*shards} == {"s0", "s1"}


def test_a_key_of_the_shard_needs_no_index(filled: ShardCluster) -> None:
    statement = columns.where(Account.tenant_id == 1, Account.email == "1@example.org")
    set_state(filled, "failed")
    assert agree(filled, statement) == 1


# Writing -----------------------------------------------------------------------------------


def test_rows_are_changed_on_their_own_shard(filled: ShardCluster) -> None:
    changed = update(Account).where(Account.email == "1@example.org").values(balance=99)
    with filled.session() as session, session.begin(), asked(filled) as shards:
        result: Any = session.execute(changed)
        assert result.rowcount == 1
        assert {*shards} == {shard_of(filled, 1)}
    with filled.session() as session:
        assert session.get_one(Account, (1, 1)).balance == 99


def test_a_key_that_is_changed_by_itself_is_found_by_the_new_one(filled: ShardCluster) -> None:
    with filled.session() as session, session.begin():
        changed = update(Account).where(Account.email == "1@example.org").values(email=BOB)
        session.execute(changed)
    assert agree(filled, columns.where(Account.email == BOB)) == 1
    agree(filled, columns.where(Account.email == "1@example.org"))


def test_rows_are_deleted_and_returned(filled: ShardCluster) -> None:
    gone = delete(Account).where(Account.token == TOKENS[3]).returning(Account.id)
    nothing = delete(Account).where(Account.token == TOKENS[3])
    with filled.session() as session, session.begin():
        assert session.execute(gone).all() == [(3,)]
        result: Any = session.execute(nothing)
        assert result.rowcount == 0


def test_a_change_of_rows_on_several_shards_needs_an_atomic_session(filled: ShardCluster) -> None:
    changed = update(Account).where(Account.number == 1).values(balance=Account.balance + 100)
    with filled.session(atomic=True) as session, session.begin():
        result: Any = session.execute(changed)
        assert result.rowcount == 5
    with filled.session(scatter=True) as session:
        found = session.scalars(select(Account.balance).where(Account.number == 1))
        assert sorted(found) == [101, 105, 109, 113, 117]


def test_a_change_by_what_no_index_finds_is_refused(filled: ShardCluster) -> None:
    with filled.session() as session:
        with pytest.raises(ScatterRefusedError):
            session.execute(update(Account).where(Account.balance == 1).values(balance=2))
        changed = update(Account).where(Account.email == "1@example.org").values(balance=2)
        with pytest.raises(ScatterRefusedError):
            session.execute(changed, execution_options={"index": None})


def test_a_row_is_locked_where_it_is(filled: ShardCluster) -> None:
    locked = select(Account).where(Account.email == "1@example.org").with_for_update()
    with filled.session() as session, filled.session() as rival:
        session.scalars(locked).one()
        skipping = select(Account.id).where(Account.email == "1@example.org")
        assert rival.execute(skipping.with_for_update(skip_locked=True)).all() == []


# In a transaction --------------------------------------------------------------------------


def test_what_a_session_has_written_is_found_by_its_new_key(filled: ShardCluster) -> None:
    with filled.session() as session:
        session.get_one(Account, (1, 1)).email = BOB

        assert session.execute(columns.where(Account.email == BOB)).all() == [(1, 1)]
        assert session.execute(columns.where(Account.email == "1@example.org")).all() == []
        session.add(Account(tenant_id=1, id=99, email="new@example.org", number=1))
        assert session.execute(columns.where(Account.email == "new@example.org")).all() == [(1, 99)]
        named = columns.where(Account.number == 1, Account.balance == 0)
        assert session.execute(named).all() == [(1, 99)]
        session.rollback()

        assert session.execute(columns.where(Account.email == BOB)).all() == []


def test_what_a_savepoint_gave_up_is_not_found(filled: ShardCluster) -> None:
    with filled.session() as session, session.begin():
        nested = session.begin_nested()
        session.execute(insert(Account).values(tenant_id=1, id=99, email=BOB))
        assert session.execute(columns.where(Account.email == BOB)).all() == [(1, 99)]
        nested.rollback()
        assert session.execute(columns.where(Account.email == BOB)).all() == []


def test_what_a_session_has_written_is_changed_by_its_new_key(filled: ShardCluster) -> None:
    with filled.session() as session, session.begin():
        session.get_one(Account, (1, 1)).email = BOB
        session.execute(update(Account).where(Account.email == BOB).values(balance=7))
    with filled.session() as session:
        assert session.get_one(Account, (1, 1)).balance == 7


def test_an_older_snapshot_is_not_read_through_a_newer_index(filled: ShardCluster) -> None:
    """Its rows may have lost their entries since."""
    tenant, shard = 1, shard_of(filled, 1)
    found = columns.where(Account.email == "1@example.org")
    with filled.session(scatter=True) as session:
        conn = session.connection(bind_arguments={"shard_id": shard})
        conn.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        conn.execute(text("SELECT 1 FROM account LIMIT 1"))
        with filled.session() as rival, rival.begin():
            rival.get_one(Account, (tenant, 1)).email = BOB

        assert session.execute(found).all() == [(1, 1)]
        assert session.execute(columns.where(Account.email == BOB)).all() == []


def test_a_first_snapshot_is_read_through_the_index(databases: Databases) -> None:
    urls = [databases.new() for _ in range(2)]
    options = {"isolation_level": "REPEATABLE READ"}
    with accounts(urls, engine_options=options) as cluster:
        put(cluster, Account(tenant_id=1, id=1, email=BOB))
        with cluster.session() as session:
            assert session.execute(columns.where(Account.email == BOB)).all() == [(1, 1)]
            with pytest.raises(ScatterRefusedError):
                session.execute(columns.where(Account.email == BOB))
    for url in urls:
        databases.drop(url)
