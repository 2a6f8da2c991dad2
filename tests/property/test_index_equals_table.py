"""After any statements, with the index built in the middle of them: index = table."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, func, text
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import IndexDiffersError
from datapatterns.index_table import IndexTable
from tests.fixtures.effort import dear
from tests.fixtures.index_tables import customer, tables

pytestmark = pytest.mark.postgres

by_email = IndexTable("by_email", on=[customer.c.email], unique=True, include=[customer.c.balance])
by_name = IndexTable(
    "by_name",
    on=[func.lower(customer.c.name), customer.c.tenant_id],
    include=[customer.c.email],
    where=customer.c.balance > 0,
)

emails = st.one_of(st.none(), st.sampled_from("abcdef"))
names = st.one_of(st.none(), st.sampled_from(["x", "X", "y"]))
balances = st.sampled_from([None, "-1", "1.0", "1.00", "NaN"])
statements = st.sampled_from(
    [
        "INSERT INTO customer VALUES (:tenant, :id, :email, :name, :balance)",
        (
            "INSERT INTO customer SELECT :tenant, g, :email || g, :name, :balance"
            " FROM generate_series(:id, 4) g"
        ),
        (
            "INSERT INTO customer VALUES (:tenant, :id, :email, :name, :balance)"
            " ON CONFLICT (tenant_id, id) DO UPDATE SET email = excluded.email,"
            " name = excluded.name, balance = excluded.balance"
        ),
        "UPDATE customer SET email = :email WHERE id = :id",
        "UPDATE customer SET name = :name, balance = :balance WHERE tenant_id = :tenant",
        (
            "UPDATE customer a SET email = b.email FROM customer b"
            " WHERE a.id = 4 - b.id AND a.tenant_id = b.tenant_id AND a.id <> b.id"
        ),
        "UPDATE customer SET tenant_id = 3 - tenant_id",
        "UPDATE customer SET id = id + 10 WHERE id = :id",
        "DELETE FROM customer WHERE id = :id",
        "DELETE FROM customer WHERE tenant_id = :tenant AND :id = 0",
    ]
)

parameters = st.fixed_dictionaries(
    {
        "tenant": st.integers(1, 2),
        "id": st.integers(0, 4),
        "email": emails,
        "name": names,
        "balance": balances,
    }
)
writes = st.lists(st.tuples(statements, parameters), min_size=4, max_size=15)


@pytest.fixture(scope="module", autouse=True)
def base_table(module_engine: Engine) -> None:
    tables.create_all(module_engine)


@dear
@given(before=writes, meanwhile=writes, after=writes)
def test_index_equals_table_after_any_statements(
    module_engine: Engine,
    before: Sequence[tuple[str, dict[str, Any]]],
    meanwhile: Sequence[tuple[str, dict[str, Any]]],
    after: Sequence[tuple[str, dict[str, Any]]],
) -> None:
    with module_engine.connect() as conn:
        for _ in executed(conn, before):
            pass
        by_email.create(conn)
        by_name.create(conn)
        was_shared = is_shared(conn)
        for _ in executed(conn, meanwhile):
            was_shared |= is_shared(conn)
            by_email.backfill(conn, limit=2)
            by_name.backfill(conn, limit=2)
        while not by_email.backfill(conn, limit=2).done:
            pass
        while not by_name.backfill(conn, limit=2).done:
            pass
        activate_unique(conn, was_shared=was_shared)
        by_name.activate(conn)
        assert_equal(conn)
        for _ in executed(conn, after):
            assert_equal(conn)
        assert by_email.verify(conn).clean
        assert by_name.verify(conn).clean
        conn.rollback()


def is_shared(conn: Connection) -> bool:
    shared = "SELECT count(*) > count(DISTINCT email) FROM customer WHERE email IS NOT NULL"
    return conn.execute(text(shared)).scalar_one() is True


def activate_unique(conn: Connection, *, was_shared: bool) -> None:
    # While an index is being built, a row it doesn't hold yet can't stop another one. The row
    # that came too late stays without an index row, even when the other one is gone by now.
    if is_shared(conn):
        with pytest.raises(IndexDiffersError):
            by_email.activate(conn)
        conn.execute(
            text(
                "UPDATE customer c SET email = NULL WHERE EXISTS (SELECT FROM customer o"
                " WHERE o.email = c.email AND (o.tenant_id, o.id) < (c.tenant_id, c.id))"
            )
        )
    if was_shared:
        assert by_email.repair(conn).clean
    by_email.activate(conn)


def executed(conn: Connection, chosen: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[None]:
    for statement, values in chosen:
        try:
            with conn.begin_nested():
                conn.execute(text(statement), values)
        except IntegrityError:
            continue
        yield


def assert_equal(conn: Connection) -> None:
    rows = conn.execute(
        text("SELECT tenant_id, id, email, name, balance FROM customer ORDER BY tenant_id, id")
    ).all()

    expected = sorted(
        (row.email, row.tenant_id, row.id, str(row.balance)) for row in rows if row.email
    )
    assert expected == sorted(
        (*entry.key, *entry.primary_key, str(entry.included["balance"]))
        for entry in by_email.keys(conn)
    )
    assert len({row.email for row in rows if row.email}) == len(expected)
    # To PostgreSQL, NaN is greater than every number.
    positive = [row for row in rows if row.name and str(row.balance) in {"1.0", "1.00", "NaN"}]
    assert sorted((r.name.lower(), r.tenant_id, r.id, r.email or "") for r in positive) == sorted(
        (*entry.key, entry.primary_key[1], entry.included["email"] or "")
        for entry in by_name.keys(conn)
    )
    # As strings, for NaN is not equal to itself in Python.
    assert [str(row) for row in by_name.lookup(conn, "x", 1)] == [
        str(row) for row in positive if row.name in {"x", "X"} and row.tenant_id == 1
    ]
