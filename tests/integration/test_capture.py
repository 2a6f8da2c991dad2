"""Every way to change a row is captured; what cannot be captured is refused."""

import os
import threading
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.exc import DBAPIError

from datapatterns.change_log import ChangeLog
from datapatterns.change_log.shapes import capture_shape
from datapatterns.errors import CapturedTableInUseError, CaptureRefusedError, IsolationLevelError
from datapatterns.sql.migrating import downgrade
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call

LOG = ChangeLog()


def run(conn: Connection, statement: str) -> None:
    conn.exec_driver_sql(statement)


def logged(conn: Connection, log_name: str, columns: str = "name, price") -> list[tuple[Any, ...]]:
    """Return what was logged, net of what cancels out, with the text of each value."""
    shown = ", ".join(f"{name.strip()}::text" for name in columns.split(","))
    rows = conn.exec_driver_sql(
        f"SELECT sum(change_sign), {shown} FROM datapatterns.{log_name} WHERE change_sign <> 0"  # noqa: S608
        f" GROUP BY {shown} HAVING sum(change_sign) <> 0 ORDER BY 1, 2"
    )
    return [tuple(row) for row in rows]


@pytest.fixture
def log_name(engine: Engine) -> str:
    """The log of a table of products."""
    with engine.begin() as conn:
        run(conn, "CREATE TABLE product (id int PRIMARY KEY, name text, price numeric, note text)")
        run(conn, "INSERT INTO product VALUES (1, 'tea', 1.0, 'a'), (2, NULL, NULL, 'b')")
        return LOG.capture(conn, "product", ["name", "price"])


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO product VALUES (3, 'Käse 🧀', 2)", [(1, "Käse 🧀", "2")]),
        ("DELETE FROM product", [(-1, "tea", "1.0"), (-1, None, None)]),
        ("UPDATE product SET name = 'x'", [(-1, "tea", "1.0"), (-1, None, None),
                                           (1, "x", "1.0"), (1, "x", None)]),
        ("UPDATE product SET price = 1.00 WHERE id = 1", [(-1, "tea", "1.0"), (1, "tea", "1.00")]),
        ("UPDATE product SET note = 'z', id = id + 10", []),
        ("UPDATE product SET name = 'x' WHERE false", []),
        (("INSERT INTO product VALUES (1, 'y', 3), (4, 'z', 4) ON CONFLICT (id) DO UPDATE"
         " SET name = excluded.name"), [(-1, "tea", "1.0"), (1, "y", "1.0"), (1, "z", "4")]),
        (("WITH gone AS (DELETE FROM product WHERE id = 1 RETURNING *)"
         " INSERT INTO product SELECT id + 5, 'moved', price FROM gone"),
         [(-1, "tea", "1.0"), (1, "moved", "1.0")]),
        (("MERGE INTO product p USING (VALUES (1), (9)) v(id) ON p.id = v.id"
         " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'new', 0)"),
         [(-1, "tea", "1.0"), (1, "new", "0")]),
        ("SET LOCAL session_replication_role = replica; DELETE FROM product WHERE id = 1",
         [(-1, "tea", "1.0")]),
    ],
)  # fmt: skip
def test_every_statement_logs_what_it_changed(
    engine: Engine, log_name: str, statement: str, expected: list[tuple[Any, ...]]
) -> None:
    with engine.begin() as conn:
        run(conn, statement)

        found = logged(conn, log_name)

    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_copied_rows_are_captured(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        driver: Any = conn.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY product (id, name) FROM STDIN") as copy:
            copy.write_row((3, "rice"))

        assert logged(conn, log_name) == [(1, "rice", None)]


def test_cascaded_deletions_are_captured(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE TABLE shelf (id int PRIMARY KEY)")
        run(conn, "CREATE TABLE box (name text, shelf int REFERENCES shelf ON DELETE CASCADE)")
        run(conn, "INSERT INTO shelf VALUES (1); INSERT INTO box VALUES ('blue', 1)")
        log_name = LOG.capture(conn, "box", ["name"])
        run(conn, "DELETE FROM shelf")

        assert logged(conn, log_name, "name") == [(-1, "blue")]


def test_truncation_is_logged_as_one_row(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "TRUNCATE product")

        rows = conn.exec_driver_sql(f"SELECT change_sign, name FROM datapatterns.{log_name}").all()  # noqa: S608
    assert [tuple(row) for row in rows] == [(0, None)]


def test_what_is_rolled_back_leaves_no_trace(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        with conn.begin_nested() as savepoint:
            run(conn, "DELETE FROM product")
            savepoint.rollback()
        run(conn, "INSERT INTO product VALUES (3, 'rice')")

        assert logged(conn, log_name) == [(1, "rice", None)]


def test_writers_need_no_right_on_the_log(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE ROLE datapatterns_test_writer")
        try:
            run(conn, "GRANT INSERT ON product TO datapatterns_test_writer")
            run(conn, "SET LOCAL ROLE datapatterns_test_writer")
            run(conn, "INSERT INTO product VALUES (3, 'rice')")
            run(conn, "RESET ROLE")

            assert logged(conn, log_name) == [(1, "rice", None)]
        finally:
            conn.rollback()


@pytest.mark.skipif("LEAST_RIGHTS" in os.environ, reason="it takes on a role of its own")
def test_nobody_else_writes_the_log_by_way_of_the_function(engine: Engine, log_name: str) -> None:
    function = log_name.replace("change_log_", "capture_")
    with engine.begin() as conn:
        run(conn, "CREATE ROLE datapatterns_test_intruder")
        run(conn, "GRANT USAGE ON SCHEMA datapatterns TO datapatterns_test_intruder")
        run(conn, "GRANT CREATE ON SCHEMA public TO datapatterns_test_intruder")
        run(conn, "SET LOCAL ROLE datapatterns_test_intruder")
        run(conn, "CREATE TABLE mine (name text, price numeric)")
        try:
            with pytest.raises(DBAPIError, match="permission denied for function"):
                run(
                    conn,
                    "CREATE TRIGGER t AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows"
                    f" FOR EACH STATEMENT EXECUTE FUNCTION datapatterns.{function}()",
                )
        finally:
            conn.rollback()


def test_capturing_again_changes_nothing_and_locks_nothing(call: Call, log_name: str) -> None:
    assert call(LOG.capture, "public.product", ["price"]) == log_name


def test_capturing_again_does_not_wait_for_writers(engine: Engine, log_name: str) -> None:
    with engine.begin() as writer, engine.begin() as conn:
        run(writer, "INSERT INTO product VALUES (3, 'rice')")
        run(conn, "SET LOCAL lock_timeout = '5s'")

        assert LOG.capture(conn, "product", ["name"]) == log_name


def test_a_second_consumer_widens_the_log(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "INSERT INTO product VALUES (3, 'rice', 1, 'narrow')")
        LOG.capture(conn, "product", ["note"])
        run(conn, "INSERT INTO product VALUES (4, 'salt', 2, 'wide')")

        found = logged(conn, log_name, "name, note")

    assert found == [(1, "rice", None), (1, "salt", "wide")]


def test_widening_waits_for_writers_that_still_log_narrow_rows(
    engine: Engine, log_name: str
) -> None:
    def widen() -> None:
        with engine.begin() as conn:
            LOG.capture(conn, "product", ["note"])

    with engine.connect() as writer:
        run(writer, "INSERT INTO product VALUES (3, 'rice', 1, 'narrow')")
        widening = threading.Thread(target=widen)
        widening.start()
        until_blocked_by(engine, writer)
        writer.commit()
        widening.join(timeout=30)

    with engine.connect() as conn:
        assert logged(conn, log_name) == [(1, "rice", "1")]


def test_two_at_once_install_capture_once(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE TABLE crate (size int)")

    def capture() -> None:
        with engine.begin() as conn:
            LOG.capture(conn, "crate", ["size"])

    with engine.connect() as first:
        log_name = LOG.capture(first, "crate", ["size"])
        second = threading.Thread(target=capture)
        second.start()
        until_blocked_by(engine, first)
        first.commit()
        second.join(timeout=30)

    with engine.begin() as conn:
        run(conn, "INSERT INTO crate VALUES (7)")
        assert logged(conn, log_name, "size") == [(1, "7")]


def test_a_disabled_trigger_is_put_right_by_capturing_again(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE product DISABLE TRIGGER ALL; ALTER TABLE product ENABLE TRIGGER ALL")
        LOG.capture(conn, "product", ["name"])
        run(conn, "SET LOCAL session_replication_role = replica")
        run(conn, "INSERT INTO product VALUES (3, 'rice')")

        assert logged(conn, log_name) == [(1, "rice", None)]


@pytest.mark.parametrize(
    "change",
    ["DROP COLUMN price", "ALTER COLUMN price TYPE float8", "ALTER COLUMN price TYPE text"],
)
def test_a_captured_column_can_neither_go_nor_change_its_type(
    engine: Engine, log_name: str, change: str
) -> None:
    with engine.begin() as conn, pytest.raises(DBAPIError, match=f"guard|{log_name}"):
        run(conn, f"ALTER TABLE product {change}")


def test_renaming_a_column_needs_capturing_again_in_the_same_migration(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE product RENAME COLUMN name TO title")
        LOG.capture(conn, "product", ["title"])
        run(conn, "INSERT INTO product VALUES (3, 'rice', 1)")

        assert logged(conn, log_name, "title, price") == [(1, "rice", "1")]


def test_a_new_column_under_a_captured_name_is_captured(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE product RENAME COLUMN name TO title")
        LOG.capture(conn, "product", ["title"])
        run(conn, "ALTER TABLE product ADD COLUMN name text")
        LOG.capture(conn, "product", ["name"])
        run(conn, "INSERT INTO product VALUES (3, 'rice', 1, 'x', 'new')")

        assert logged(conn, log_name, "title, name") == [(1, "rice", "new")]


@pytest.mark.usefixtures("log_name")
def test_a_new_column_of_another_type_under_a_captured_name_is_refused(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE product RENAME COLUMN name TO title")
        LOG.capture(conn, "product", ["title"])
        run(conn, "ALTER TABLE product ADD COLUMN name int")

        with pytest.raises(CaptureRefusedError, match="'name' is integer"):
            LOG.capture(conn, "product", ["name"])


@pytest.mark.usefixtures("log_name")
def test_capture_needs_to_see_what_others_installed_meanwhile(engine: Engine) -> None:
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with snapshot.connect() as conn:
        run(conn, "SELECT 1")
        with engine.begin() as other:
            LOG.capture(other, "product", ["note"])

        with pytest.raises(IsolationLevelError):
            LOG.capture(conn, "product", ["id"])


def test_a_table_with_values_of_a_domain_without_nulls_can_be_truncated(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE DOMAIN sure AS int NOT NULL; CREATE DOMAIN surer AS sure CHECK (true)")
        run(conn, "CREATE TABLE stock (a surer, b surer); INSERT INTO stock VALUES (1, 1)")
        LOG.capture(conn, "stock", ["a"])
        run(conn, "INSERT INTO stock VALUES (2, 2)")
        log_name = LOG.capture(conn, "stock", ["b"])
        run(conn, "TRUNCATE stock")

        signs = conn.exec_driver_sql(f"SELECT change_sign FROM datapatterns.{log_name}")  # noqa: S608
        assert sorted(signs.scalars()) == [0, 1]


@pytest.mark.usefixtures("log_name")
def test_a_renamed_table_is_refused(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE product RENAME TO article")

        with pytest.raises(CaptureRefusedError, match="already"):
            LOG.capture(conn, "article", ["name"])


def test_odd_names_are_quoted(engine: Engine) -> None:
    table = '"Läden %"."it\'s a ""table"""'
    with engine.begin() as conn:
        run(conn, 'CREATE SCHEMA "Läden %%"')
        run(conn, f'CREATE TABLE {table} ("x%s ""y""" text, "select" int)'.replace("%", "%%"))
        log_name = LOG.capture(conn, table, ['x%s "y"', "select"])
        run(conn, f"INSERT INTO {table} VALUES ('a', 1)".replace("%", "%%"))  # noqa: S608
        run(conn, f'UPDATE {table} SET "select" = 2'.replace("%", "%%"))  # noqa: S608

        assert logged(conn, log_name, '"select"') == [(1, "2")]


def test_tables_of_one_name_have_logs_of_their_own(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE SCHEMA other; CREATE TABLE other.product (name text)")
        other = LOG.capture(conn, "other.product", ["name"])
        run(conn, "INSERT INTO other.product VALUES ('x')")

        assert other != log_name
        assert logged(conn, log_name) == []


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("CREATE TABLE parent (a int); CREATE TABLE t () INHERITS (parent)", "part of parent"),
        ("CREATE TABLE t (a int); CREATE TABLE child () INHERITS (t)", "inherit from it"),
        ("CREATE TEMPORARY TABLE t (a int)", "temporary"),
        ("CREATE UNLOGGED TABLE t (a int)", "unlogged"),
        ("CREATE VIEW t AS SELECT 1 AS a", "view"),
        ("CREATE MATERIALIZED VIEW t AS SELECT 1 AS a", "materialized view"),
        ("CREATE TABLE t (a int); ALTER TABLE t ENABLE ROW LEVEL SECURITY", "row-level security"),
        ("CREATE TABLE t (a json)", "json"),
        ("CREATE TABLE t (a json[])", "json"),
        ("CREATE TABLE t (b int)", "'a' does not exist"),
        ("SELECT 1", "no such table"),
    ],
)
def test_what_cannot_be_captured_is_refused(conn: Connection, definition: str, reason: str) -> None:
    run(conn, definition)

    with pytest.raises(CaptureRefusedError, match=reason):
        LOG.capture(conn, "t", ["a"])


def test_a_subscribed_table_is_refused(conn: Connection) -> None:
    run(conn, "CREATE TABLE t (a int)")
    run(
        conn,
        "CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE)",
    )
    run(
        conn,
        "INSERT INTO pg_subscription_rel SELECT oid, 't'::regclass, 'r' FROM pg_subscription"
        " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )

    with pytest.raises(CaptureRefusedError, match="subscription"):
        LOG.capture(conn, "t", ["a"])


def test_virtual_columns_are_refused(conn: Connection) -> None:
    if conn.dialect.server_version_info < (18,):  # type: ignore[operator]  # it is connected
        pytest.skip("needs PostgreSQL 18")
    run(conn, "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a + 1) VIRTUAL)")

    with pytest.raises(CaptureRefusedError, match=r"virtual.*computed from \(a\)"):
        LOG.capture(conn, "t", ["b"])


def test_row_security_is_passed_by_where_that_is_allowed_by_name(conn: Connection) -> None:
    run(conn, "CREATE TABLE t (a int); ALTER TABLE t ENABLE ROW LEVEL SECURITY")

    log_name = LOG.capture(conn, "t", ["a"], allow_row_security=True)
    run(conn, "INSERT INTO t VALUES (1)")

    assert logged(conn, log_name, "a") == [(1, "1")]
    assert LOG.recapture(conn) == []
    assert LOG.capture(conn, "t", [], allow_row_security=True) == log_name
    with pytest.raises(CaptureRefusedError, match="allow_row_security"):
        LOG.capture(conn, "t", ["a"])


def test_row_security_that_comes_later_is_noticed_unless_it_was_allowed(conn: Connection) -> None:
    run(conn, "CREATE TABLE t (a int); CREATE TABLE u (a int)")
    for table, allowed in [("t", False), ("u", True)]:
        log_name = LOG.capture(conn, table, ["a"])
        if allowed:
            LOG.capture(conn, table, ["a"], allow_row_security=True)
        run(conn, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        shape = conn.execute(select(capture_shape(log_name, schema=LOG.schema))).scalar_one()

        assert (shape is not None) is allowed


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE product DISABLE TRIGGER datapatterns_capture_update",
        "ALTER TABLE product SET UNLOGGED",
        "CREATE TABLE child () INHERITS (product)",
        "CREATE TABLE parent (LIKE product); ALTER TABLE product INHERIT parent",
        "INSERT INTO pg_subscription_rel VALUES (1, 'product'::regclass, 'r')",
        (
            "DROP VIEW datapatterns.capture_guard_{0};"
            " ALTER TABLE product ALTER price TYPE numeric USING price + 1"
        ),
        "ALTER TABLE product RENAME name TO n; ALTER TABLE product RENAME note TO name",
    ],
    ids=lambda change: "_".join(change.split()[:5]),
)
def test_what_befalls_a_captured_table_changes_its_shape(
    engine: Engine, log_name: str, change: str
) -> None:
    shape = select(capture_shape(log_name, schema=LOG.schema))
    with engine.begin() as conn:
        before = conn.execute(shape).scalar_one()
        run(conn, change.format(log_name.removeprefix("change_log_")))

        assert conn.execute(shape).scalar_one() != before is not None


def test_a_generated_column_that_is_computed_anew_changes_the_shape(conn: Connection) -> None:
    if conn.dialect.server_version_info < (17,):  # type: ignore[operator]  # it is connected
        pytest.skip("needs PostgreSQL 17")
    run(conn, "CREATE TABLE t (a int, b int GENERATED ALWAYS AS (a + 1) STORED)")
    shape = select(capture_shape(LOG.capture(conn, "t", ["b"]), schema=LOG.schema))
    before = conn.execute(shape).scalar_one()
    run(conn, "ALTER TABLE t ALTER b SET EXPRESSION AS (a + 2)")

    assert conn.execute(shape).scalar_one() != before is not None


def test_a_released_table_is_as_it_was(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        LOG.release(conn, "product")
        LOG.release(conn, "product")
        run(conn, "INSERT INTO product VALUES (3, 'rice')")
        run(conn, "ALTER TABLE product DROP COLUMN name")

        assert log_name not in inspect(conn).get_table_names(schema="datapatterns")


def test_a_table_that_somebody_consumes_is_not_released(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        LOG.register_consumer(conn, "relay", "test", log_names=[log_name])

        with pytest.raises(CapturedTableInUseError, match="relay"):
            LOG.release(conn, "product")


@pytest.mark.usefixtures("log_name")
def test_the_migration_is_not_undone_under_captured_tables(engine: Engine) -> None:
    with engine.begin() as conn, pytest.raises(DBAPIError, match="release them first"):
        downgrade(conn, "dp0002")
