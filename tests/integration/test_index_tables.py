from decimal import Decimal

import pytest
from sqlalchemy import Engine, func, text
from sqlalchemy.exc import IntegrityError

from datapatterns.errors import (
    ConflictError,
    CorruptionError,
    IndexChangedError,
    IndexDiffersError,
    IndexKeyTakenError,
    IndexMissingError,
    IndexNotReadyError,
    IsolationLevelError,
    UnavailableError,
)
from datapatterns.index_table import IndexTable
from datapatterns.sql.migrating import upgrade
from tests.fixtures.colours import Call
from tests.fixtures.index_tables import (
    assert_agrees,
    backfill,
    build,
    customer,
    order_line,
    run,
    tables,
)

pytestmark = pytest.mark.postgres

by_product = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note]
)
by_email = IndexTable(
    "customer_by_email", on=[customer.c.email], unique=True, include=[customer.c.name]
)


@pytest.fixture(autouse=True)
def base_tables(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(
            conn,
            "INSERT INTO order_line SELECT g, g % 7, 'n' || g FROM generate_series(1, 100) g",
        )


def test_an_index_finds_what_a_scan_finds(call: Call) -> None:
    call(by_product.create)
    assert not call(by_product.backfill, limit=60).done
    assert call(by_product.backfill, limit=60).rows_done == 100
    assert call(by_product.activate).rows == 100

    rows = call(by_product.lookup, 3)

    assert [row.id for row in rows] == list(range(3, 101, 7))
    assert call(by_product.lookup, 99) == []
    assert call(by_product.verify).clean
    assert call(by_product.repair).clean
    assert call(by_product.drop)
    assert not call(by_product.drop)


def test_the_happy_path_works_in_a_schema_of_another_name(engine: Engine) -> None:
    index = IndexTable("line_by_product", on=[order_line.c.product_id], schema="elsewhere")
    with engine.begin() as conn:
        upgrade(conn, schema="elsewhere")
    # Both at once: neither name may collide.
    build(engine, by_product)

    build(engine, index)

    with engine.begin() as conn:
        run(conn, "UPDATE order_line SET product_id = 50 WHERE id = 1")
        assert [row.id for row in index.lookup(conn, 50)] == [1]
        assert assert_agrees(conn, index) == assert_agrees(conn, by_product) == 100
        assert index.drop(conn)
        assert by_product.lookup(conn, 50)


def test_pages_end_to_end_show_each_row_once(engine: Engine) -> None:
    build(engine, by_product)

    with engine.connect() as conn:
        all_rows = by_product.lookup(conn, 3)
        first = by_product.lookup(conn, 3, limit=6)
        second = by_product.lookup(conn, 3, limit=6, after=(first[-1].id,))
        third = by_product.lookup(conn, 3, limit=6, after=(second[-1].id,))

        assert [*first, *second, *third] == all_rows
        assert len(third) == 2


def test_many_keys_are_looked_up_in_one_statement(engine: Engine) -> None:
    build(engine, by_product)

    with engine.connect() as conn:
        found = by_product.lookup_many(conn, [6, 99, 0, 6], limit_per_key=2)

        assert {key: [row.id for row in rows] for key, rows in found.items()} == {
            6: [6, 13],
            99: [],
            0: [7, 14],
        }
        assert by_product.lookup_many(conn, []) == {}
        assert found[6][0].note == "n6"


def test_ranges_and_prefixes_follow_the_order_of_the_index(engine: Engine) -> None:
    index = IndexTable("by_both", on=[order_line.c.product_id, order_line.c.note])
    build(engine, index)

    with engine.connect() as conn:
        matches = index.lookup_range(conn, 3, low="n2", high="n4")
        assert [match.row.id for match in matches] == [24, 3, 31, 38]
        assert matches[0].entry.key == (3, "n24")
        page = index.lookup_range(conn, 3, low="n2", high="n4", after=matches[1].entry)
        assert page == matches[2:]
        entries = index.keys(conn, low=5)
        assert len(entries) == 28
        assert index.keys(conn, low=5, after=entries[10], limit=3) == entries[11:14]
        assert len(index.keys(conn)) == 100
        with pytest.raises(ValueError, match="exceed the key"):
            index.keys(conn, 1, "n1", low="n2")
        with pytest.raises(ValueError, match="for a part of it use a range"):
            index.lookup(conn, 1)


def test_index_rows_carry_their_included_columns(engine: Engine) -> None:
    build(engine, by_product)

    with engine.begin() as conn:
        run(conn, "UPDATE order_line SET note = 'new' WHERE id = 3")
        first = by_product.keys(conn, 3, limit=1)[0]

        assert (first.key, first.primary_key, first.included) == ((3,), (3,), {"note": "new"})


def test_an_index_that_is_being_built_is_not_trusted(engine: Engine) -> None:
    with engine.begin() as conn:
        by_product.create(conn)
        run(conn, "INSERT INTO order_line VALUES (1001, 3, 'written by a trigger')")
        for look_up in (
            lambda: by_product.lookup(conn, 3),
            lambda: by_product.lookup_many(conn, [3]),
            lambda: by_product.lookup_range(conn, 3),
            lambda: by_product.keys(conn, 3),
        ):
            with pytest.raises(IndexNotReadyError, match="building") as refused:
                look_up()
            assert isinstance(refused.value, UnavailableError)

        assert len(by_product.lookup(conn, 3, miss="scan")) == 15
        assert by_product.lookup(conn, 3, miss="scan", after=(94,))[0].id == 1001
        assert len(by_product.lookup_many(conn, [3, 99], miss="scan")[3]) == 15


def test_an_index_that_was_never_created_is_missing(engine: Engine) -> None:
    for operation in (
        lambda conn: by_product.lookup(conn, 3),
        lambda conn: by_product.lookup(conn, 3, miss="scan"),
        lambda conn: by_product.lookup_many(conn, [3]),
        lambda conn: by_product.lookup_range(conn, 3),
        lambda conn: by_product.keys(conn, 3),
        by_product.backfill,
        by_product.activate,
        by_product.verify,
        by_product.repair,
    ):
        with engine.connect() as conn, pytest.raises(IndexMissingError, match="create"):
            operation(conn)


def test_an_index_with_other_columns_was_built_from_another_definition(engine: Engine) -> None:
    build(engine, IndexTable("line_by_product", on=[order_line.c.product_id]))

    for operation in (
        lambda conn: IndexTable("line_by_product", on=[order_line.c.note]).lookup(conn, "n1"),
        lambda conn: by_product.keys(conn, 3),
        lambda conn: by_product.lookup_range(conn, 3),
    ):
        with engine.connect() as conn, pytest.raises(IndexChangedError, match="another"):
            operation(conn)


def test_an_index_becomes_ready_only_when_it_agrees(engine: Engine) -> None:
    with engine.begin() as conn:
        by_product.create(conn)
        with pytest.raises(IndexNotReadyError):
            by_product.activate(conn)
    backfill(engine, by_product)
    with engine.begin() as conn:
        run(conn, "DELETE FROM datapatterns.line_by_product WHERE product_id = 3")
        with pytest.raises(IndexDiffersError, match="14 missing") as differs:
            by_product.activate(conn)

        assert (differs.value.missing, differs.value.orphaned) == (14, 0)
        assert isinstance(differs.value, CorruptionError)
        assert by_product.repair(conn).clean
        assert by_product.activate(conn).clean


def test_values_asked_for_must_make_a_key(engine: Engine) -> None:
    build(engine, by_product)

    with engine.connect() as conn:
        for wrong in (
            lambda: by_product.lookup(conn, None),
            lambda: by_product.lookup(conn),
            lambda: by_product.lookup(conn, 1, 2),
            lambda: by_product.lookup(conn, 1, limit=0),
            lambda: by_product.lookup(conn, 1, after=(1, 2)),
            lambda: by_product.lookup_many(conn, [None]),
            lambda: by_product.lookup_many(conn, range(1001)),
            lambda: by_product.keys(conn, None),
            lambda: by_product.keys(conn, limit=0),
            lambda: by_product.backfill(conn, limit=0),
        ):
            with pytest.raises(ValueError, match=r"NULL|values|limit|keys|primary key"):
                wrong()
        assert by_product.lookup(conn, 3)


def test_a_changed_definition_is_refused_until_the_index_is_built_anew(engine: Engine) -> None:
    changed = IndexTable("line_by_product", on=[order_line.c.product_id])
    build(engine, by_product)

    with engine.begin() as conn:
        for operation in (
            lambda: changed.create(conn),
            lambda: changed.lookup(conn, 3),
            lambda: changed.lookup_many(conn, [3]),
            lambda: changed.keys(conn, 3),
            lambda: changed.backfill(conn),
            lambda: changed.activate(conn),
            lambda: changed.verify(conn),
            lambda: changed.repair(conn),
        ):
            with pytest.raises(IndexChangedError, match="another definition"):
                operation()
        assert by_product.lookup(conn, 3)
        assert changed.drop(conn)
    build(engine, changed)
    with engine.begin() as conn:
        assert changed.lookup(conn, 3)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_building_in_an_old_snapshot_is_refused(engine: Engine, level: str) -> None:
    with engine.begin() as conn:
        by_product.create(conn)

    with engine.connect().execution_options(isolation_level=level) as conn:
        for operation in (by_product.backfill, by_product.activate, by_product.repair):
            with pytest.raises(IsolationLevelError):
                operation(conn)


def test_a_second_row_with_a_unique_key_is_a_conflict(engine: Engine) -> None:
    build(engine, by_email)

    with engine.begin() as conn:
        run(conn, "INSERT INTO customer VALUES (1, 1, 'bob@example.org', 'Bob')")
        with (
            pytest.raises(IndexKeyTakenError) as taken,
            conn.begin_nested(),
            by_email.key_conflicts(),
        ):
            run(conn, "INSERT INTO customer VALUES (2, 2, 'bob@example.org', 'Rob')")
        with pytest.raises(IntegrityError), conn.begin_nested(), by_email.key_conflicts():
            run(conn, "INSERT INTO customer VALUES (1, 1, 'rob@example.org', 'Rob')")

        assert isinstance(taken.value, ConflictError)
        assert [row.name for row in by_email.lookup(conn, "bob@example.org")] == ["Bob"]
        assert assert_agrees(conn, by_email) == 1


def test_rows_that_share_a_unique_key_keep_the_index_from_being_ready(engine: Engine) -> None:
    with engine.begin() as conn:
        run(
            conn, "INSERT INTO customer VALUES (1, 1, 'a', 'x'), (1, 2, 'a', 'y'), (1, 3, 'b', 'z')"
        )
        by_email.create(conn)
    backfill(engine, by_email)

    with engine.begin() as conn, pytest.raises(IndexDiffersError, match="1 missing"):
        by_email.activate(conn)

    with engine.begin() as conn:
        assert by_email.repair(conn).missing == 1
        run(conn, "DELETE FROM customer WHERE id = 1")
        assert by_email.repair(conn).clean
        by_email.activate(conn)
        assert [row.id for row in by_email.lookup(conn, "a")] == [2]


def test_an_orphan_costs_a_look_up_but_never_a_wrong_answer(engine: Engine) -> None:
    build(engine, by_email)
    build(engine, by_product)

    with engine.begin() as conn:
        run(conn, "INSERT INTO customer VALUES (1, 2, 'elsewhere', 'y')")
        run(conn, "DELETE FROM datapatterns.customer_by_email")
        run(conn, "INSERT INTO datapatterns.customer_by_email VALUES ('here', 1, 1)")
        run(conn, "INSERT INTO datapatterns.customer_by_email VALUES ('moved', 1, 2)")

        assert by_email.lookup(conn, "here") == []
        assert by_email.lookup(conn, "moved") == []
        assert by_email.lookup_many(conn, ["here", "moved"]) == {"here": [], "moved": []}
        assert by_email.lookup_range(conn) == []
        report = by_email.verify(conn)
        assert (report.missing, report.orphaned, report.different) == (1, 2, 0)
        assert {(sample.kind, sample.key, sample.primary_key) for sample in report.samples} == {
            ("missing", ("elsewhere",), (1, 2)),
            ("orphaned", ("here",), (1, 1)),
            ("orphaned", ("moved",), (1, 2)),
        }
        assert by_email.repair(conn).clean
        assert [row.id for row in by_email.lookup(conn, "elsewhere")] == [2]


def test_an_orphan_is_in_nobodys_way(engine: Engine) -> None:
    build(engine, by_product)

    with engine.begin() as conn:
        run(conn, "INSERT INTO datapatterns.line_by_product VALUES (3, 5000, 'ghost')")
        run(conn, "INSERT INTO order_line VALUES (5000, 3, 'real')")

        assert assert_agrees(conn, by_product) == 101


def test_verify_tells_equal_values_from_the_same_value(engine: Engine) -> None:
    index = IndexTable("by_name", on=[customer.c.name], include=[customer.c.balance])
    build(engine, index)

    with engine.begin() as conn:
        run(conn, "INSERT INTO customer VALUES (1, 1, 'a', 'x', 1.0), (1, 2, 'b', 'y', NULL)")
        run(conn, "UPDATE customer SET balance = 1.00 WHERE id = 1")
        assert str(index.keys(conn, "x")[0].included["balance"]) == "1.00"
        assert_agrees(conn, index)
        run(conn, "UPDATE datapatterns.by_name SET balance = 1.0")
        assert index.verify(conn).different == 2
        assert index.repair(conn).clean
        assert index.keys(conn, "x")[0].included == {"balance": Decimal("1.00")}


def test_an_expression_is_looked_up_by_its_value(engine: Engine) -> None:
    index = IndexTable(
        "by_lower_email", on=[func.lower(customer.c.email)], where=customer.c.name != "100% :x\\'"
    )
    with engine.begin() as conn:
        run(
            conn,
            "INSERT INTO customer VALUES (1, 1, 'BOB', 'b'), (1, 2, 'bob', :n), (1, 3, 'b', NULL)",
            n="100% :x\\'",
        )
    build(engine, index)

    with engine.begin() as conn:
        assert [row.email for row in index.lookup(conn, "bob")] == ["BOB"]
        run(conn, "UPDATE customer SET name = 'shown' WHERE id = 2")
        assert [row.id for row in index.lookup(conn, "bob")] == [1, 2]
        assert assert_agrees(conn, index) == 2


def test_rolled_back_work_leaves_nothing_in_the_index(engine: Engine) -> None:
    build(engine, by_product)

    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        run(conn, "UPDATE order_line SET product_id = 77 WHERE id <= 10")
        assert len(by_product.lookup(conn, 77)) == 10
        savepoint.rollback()
        assert by_product.lookup(conn, 77) == []
        assert assert_agrees(conn, by_product) == 100


def test_an_empty_table_is_indexed_at_once(engine: Engine) -> None:
    build(engine, by_email)

    with engine.connect() as conn:
        assert by_email.verify(conn).rows == 0
        assert by_email.lookup(conn, "nobody") == []


def test_a_key_column_may_be_part_of_the_primary_key(engine: Engine) -> None:
    index = IndexTable("by_id", on=[customer.c.id], include=[customer.c.tenant_id])
    with engine.begin() as conn:
        run(
            conn, "INSERT INTO customer VALUES (1, 5, 'a', 'x'), (2, 5, 'b', 'y'), (2, 6, 'c', 'z')"
        )
    build(engine, index, limit=1)

    with engine.connect() as conn:
        assert [row.tenant_id for row in index.lookup(conn, 5)] == [1, 2]
        entry = index.keys(conn, 5)[0]
        assert (entry.primary_key, entry.included) == ((1, 5), {"tenant_id": 1})


def test_writers_need_no_right_on_the_index(engine: Engine) -> None:
    build(engine, by_product)
    role = f"index_writer_{engine.url.database}"[:60]

    with engine.begin() as conn:
        conn.execute(text(f'CREATE ROLE "{role}"'))
        conn.execute(text(f'GRANT INSERT, SELECT ON order_line TO "{role}"'))
        conn.execute(text(f'SET LOCAL ROLE "{role}"'))
        run(conn, "INSERT INTO order_line VALUES (2000, 3, 'by somebody else')")
        run(conn, "RESET ROLE")

        assert by_product.lookup(conn, 3)[-1].id == 2000
        conn.rollback()
