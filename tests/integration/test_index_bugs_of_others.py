"""What went wrong in other index tables, and does not here; the issue is named at each.

Vitess' lookup vindexes keep such tables, too; theirs are on other shards.
"""

import pytest
from sqlalchemy import Engine

from datapatterns.errors import IndexKeyTakenError
from datapatterns.index_table import Indexes, IndexTable
from tests.fixtures.index_tables import assert_agrees, build, customer, run, tables

pytestmark = pytest.mark.postgres

by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
by_name = IndexTable("customer_by_name", on=[customer.c.name])


@pytest.fixture(autouse=True)
def indexed(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO customer VALUES (1, 1, 'ann', 'A'), (1, 2, 'bob', 'B')")
    build(engine, by_email)
    build(engine, by_name)


def agree(engine: Engine, rows: int) -> None:
    with engine.connect() as conn:
        assert assert_agrees(conn, by_email) == assert_agrees(conn, by_name) == rows


def test_a_batch_with_a_duplicate_in_it_leaves_nothing_behind(engine: Engine) -> None:
    """vitess#17956: a part of such a batch stayed."""
    with engine.begin() as conn:
        with pytest.raises(IndexKeyTakenError), by_email.key_conflicts(), conn.begin_nested():
            run(conn, "INSERT INTO customer VALUES (1, 3, 'c', 'C'), (1, 5, 'c', 'C')")
        run(conn, "INSERT INTO customer VALUES (1, 6, 'c', 'C')")
    agree(engine, 3)


def test_a_key_whose_row_is_gone_can_be_taken_again(engine: Engine) -> None:
    """vitess#14652: a value with an orphaned index row could never be used again."""
    with engine.begin() as conn:
        run(conn, "DELETE FROM customer WHERE id = 1")
        run(conn, "INSERT INTO customer VALUES (2, 9, 'ann', 'A')")
        # One that nobody but somebody writing to the index can have left.
        run(conn, "INSERT INTO datapatterns.customer_by_email VALUES ('zoe', 7, 7)")
    assert Indexes([by_email]).sweep(engine)["customer_by_email"].removed == 1
    with engine.begin() as conn, by_email.key_conflicts():
        run(conn, "INSERT INTO customer VALUES (2, 10, 'zoe', 'Z')")
    agree(engine, 3)


def test_the_row_of_an_orphan_takes_it_over(engine: Engine) -> None:
    with engine.begin() as conn, by_email.key_conflicts():
        run(conn, "INSERT INTO datapatterns.customer_by_email VALUES ('zoe', 7, 7)")
        run(conn, "INSERT INTO customer VALUES (7, 7, 'zoe', 'Z')")
    agree(engine, 3)


def test_a_transaction_finds_what_it_has_written_itself(engine: Engine) -> None:
    """vitess#6499 and #4978: look-ups and checks went by another connection."""
    with engine.begin() as conn:
        run(conn, "INSERT INTO customer VALUES (1, 3, 'c', 'C')")
        run(conn, "UPDATE customer SET email = 'a' WHERE id = 1")
        assert [row.id for row in by_email.lookup(conn, "c")] == [3]
        assert [row.id for row in by_email.lookup(conn, "a")] == [1]
        assert by_email.lookup(conn, "ann") == []
        assert by_email.verify(conn).clean


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_key_that_is_taken_is_called_so_at_any_level(engine: Engine, level: str) -> None:
    """vitess#6518: another error came in one mode of transactions."""
    with (
        engine.connect().execution_options(isolation_level=level) as conn,
        pytest.raises(IndexKeyTakenError),
        by_email.key_conflicts(),
    ):
        run(conn, "INSERT INTO customer VALUES (1, 3, 'ann', 'C')")


@pytest.mark.parametrize(
    "then",
    [
        "UPDATE customer SET email = 'd' WHERE id = 3",
        "UPDATE customer SET email = 'c' WHERE id = 3",
        "DELETE FROM customer WHERE id = 3",
        "UPDATE customer SET id = 4 WHERE id = 3",
    ],
)
def test_a_key_can_be_written_and_changed_in_one_transaction(engine: Engine, then: str) -> None:
    """vitess#4855: inserting, then updating or deleting one value waited for itself for ever."""
    with engine.begin() as conn, by_email.key_conflicts():
        run(conn, "SET LOCAL lock_timeout = '5s'")
        run(conn, "INSERT INTO customer VALUES (1, 3, 'c', 'C')")
        run(conn, then)
    agree(engine, 2 if then.startswith("DELETE") else 3)


@pytest.mark.parametrize("mode", ["local", "async"])
def test_rows_can_be_deleted_while_an_index_is_built(engine: Engine, mode: str) -> None:
    """vitess#8701: a delete failed as long as its index row was not there yet."""
    index = IndexTable("building", on=[customer.c.email], mode=mode)  # type: ignore[arg-type]
    with engine.begin() as conn:
        index.create(conn)
    with engine.begin() as conn:
        index.backfill(conn, limit=1)
    with engine.begin() as conn:
        run(conn, "DELETE FROM customer")
        run(conn, "INSERT INTO customer VALUES (1, 1, 'ann', 'again')")

    assert Indexes([index]).build(engine)["building"].clean
    with engine.connect() as conn:
        assert assert_agrees(conn, index) == 1
        assert len(index.lookup(conn, "ann")) == 1
