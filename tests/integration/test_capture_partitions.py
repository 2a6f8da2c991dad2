"""A partitioned table is captured as one: by whatever name a row changes, and wherever it goes."""

import os
import threading
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import DBAPIError

from datapatterns.change_log import ChangeLog
from datapatterns.change_log.shapes import capture_shape
from datapatterns.errors import CaptureRefusedError, MissingRightsError
from datapatterns.testing import wait_until
from tests.fixtures.blocking import until_blocked_by

LOG = ChangeLog()
MARK = (0, None, None)
SALES = """
CREATE TABLE sale (id int, day int, region text, cents int) PARTITION BY RANGE (day);
CREATE TABLE sale_1 PARTITION OF sale FOR VALUES FROM (0) TO (10);
CREATE TABLE sale_2 PARTITION OF sale FOR VALUES FROM (10) TO (20) PARTITION BY LIST (region);
CREATE TABLE sale_2_north PARTITION OF sale_2 FOR VALUES IN ('n', 'nw');
CREATE TABLE sale_2_other (cents int, region text, gone int, id int, day int);
ALTER TABLE sale_2_other DROP COLUMN gone;
ALTER TABLE sale_2 ATTACH PARTITION sale_2_other DEFAULT;
INSERT INTO sale VALUES (1, 1, 'n', 100), (2, 12, 'n', 200), (3, 13, 's', 300);
"""


def run(conn: Connection, statement: str) -> None:
    conn.exec_driver_sql(statement)


def logged(conn: Connection, log_name: str) -> list[tuple[Any, ...]]:
    """Return what was logged, net of what cancels out; a marker counts once."""
    rows = conn.exec_driver_sql(
        "SELECT CASE WHEN change_sign <> 0 THEN sum(change_sign) ELSE 0 END, id, cents"  # noqa: S608
        f" FROM datapatterns.{log_name} GROUP BY id, cents, change_sign = 0, change_sign <> 0,"
        " CASE WHEN change_sign = 0 THEN 0 END"
        " HAVING sum(change_sign) <> 0 OR bool_or(change_sign = 0) ORDER BY 1, 2, 3"
    )
    return [tuple(row) for row in rows]


def shape_of(conn: Connection, log_name: str) -> str | None:
    return conn.execute(select(capture_shape(log_name, schema=LOG.schema))).scalar_one()


def has_merge(conn: Connection) -> bool:
    version = conn.dialect.server_version_info
    return version is not None and version >= (15,)


@pytest.fixture
def log_name(engine: Engine) -> str:
    """The log of a table of sales, in partitions by day and some by region."""
    with engine.begin() as conn:
        run(conn, SALES)
        return LOG.capture(conn, "sale", ["id", "cents"])


@pytest.mark.parametrize("relation", ["sale", "sale_2", "sale_2_other"])
@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO {} (id, day, region, cents) VALUES (4, 14, 's', 400)", [(1, 4, 400)]),
        ("UPDATE {} SET cents = 1 WHERE id = 3", [(-1, 3, 300), (1, 3, 1)]),
        ("UPDATE {} SET region = 'x', day = 15 WHERE id = 3", []),
        ("DELETE FROM {} WHERE id = 3", [(-1, 3, 300)]),
    ],
)
def test_a_row_changes_by_the_name_of_each_table_that_it_is_in(
    engine: Engine, log_name: str, relation: str, statement: str, expected: list[tuple[Any, ...]]
) -> None:
    with engine.begin() as conn:
        run(conn, statement.format(relation))

        assert logged(conn, log_name) == expected


def test_rows_copied_into_a_partition_are_captured(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        driver: Any = conn.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy("COPY sale_1 (id, day) FROM STDIN") as copy:
            copy.write_row((4, 2))

        assert logged(conn, log_name) == [(1, 4, None)]


def test_what_cascades_into_partitions_is_captured(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE TABLE region (name text PRIMARY KEY); INSERT INTO region VALUES ('n')")
        run(conn, "DELETE FROM sale WHERE region = 's'")
        run(conn, "ALTER TABLE sale ADD FOREIGN KEY (region) REFERENCES region ON DELETE CASCADE")
        run(conn, "DELETE FROM region")

        assert logged(conn, log_name) == [(-1, 1, 100), (-1, 2, 200), (-1, 3, 300)]


@pytest.mark.parametrize("relation", ["sale", "sale_1", "sale_2", "sale_2_north"])
def test_truncation_of_any_part_is_logged(engine: Engine, log_name: str, relation: str) -> None:
    with engine.begin() as conn:
        run(conn, f"TRUNCATE {relation}")

        assert logged(conn, log_name) == [(0, None, None)]


MOVE = """
MERGE INTO sale s USING (VALUES (1, 15), (3, 16)) v(id, day) ON s.id = v.id
WHEN MATCHED THEN UPDATE SET day = v.day
"""


def test_a_merge_that_moves_a_row_is_logged(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        if not has_merge(conn):
            pytest.skip("needs PostgreSQL 15")
        run(conn, "SET LOCAL session_replication_role = replica")
        run(conn, MOVE.replace("SET day = v.day", "SET day = v.day, cents = 7"))

        assert (0, None, None) in logged(conn, log_name)


def test_without_its_trigger_a_merge_that_moves_a_row_would_go_unlogged(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        if not has_merge(conn):
            pytest.skip("needs PostgreSQL 15")
        run(conn, 'DROP TRIGGER "~datapatterns_capture_move" ON sale')
        assert shape_of(conn, log_name) is None
        run(conn, MOVE.replace(", (3, 16)", "").replace("SET day = v.day", "SET day = 15, cents=7"))

        assert logged(conn, log_name) == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE sale SET day = 2 WHERE id = 1", []),  # stays in its partition
        ("UPDATE sale SET region = 'nw' WHERE id = 2", []),
        ("UPDATE sale SET day = 15 WHERE id = 1", [(0, None, None)]),
        ("UPDATE sale SET region = 's' WHERE id = 2", [(0, None, None)]),
        ("UPDATE sale_2 SET region = 'nw' WHERE id = 3", [(0, None, None)]),
    ],
)
def test_only_rows_that_leave_their_partition_count_as_moved(
    engine: Engine, log_name: str, statement: str, expected: list[tuple[Any, ...]]
) -> None:
    with engine.begin() as conn:
        run(conn, statement)

        assert logged(conn, log_name) == expected


@pytest.mark.parametrize(
    ("by", "bounds", "moved"),
    [
        ("HASH (id)", "WITH (MODULUS 2, REMAINDER {})", "UPDATE crate SET id = id + 1"),
        ("LIST ((id % 2))", "IN ({})", "UPDATE crate SET id = id + 2"),  # any change of the key
    ],
)
def test_a_table_in_partitions_by_hash_or_expression(
    engine: Engine, by: str, bounds: str, moved: str
) -> None:
    with engine.begin() as conn:
        run(conn, f"CREATE TABLE crate (id int, note text) PARTITION BY {by}".replace("%", "%%"))
        for n in range(2):
            values = f"FOR VALUES {bounds.format(n)}"
            run(conn, f"CREATE TABLE crate_{n} PARTITION OF crate {values}")
        log_name = LOG.capture(conn, "crate", [])
        run(conn, "INSERT INTO crate SELECT generate_series(1, 50)")
        run(conn, "UPDATE crate SET note = 'same place'")
        count = text(f"SELECT count(*) FROM datapatterns.{log_name} WHERE change_sign = 0")  # noqa: S608
        quiet = conn.scalar(count)
        run(conn, moved)

        assert (quiet, conn.scalar(count) > 0) == (0, True)


def test_a_new_partition_is_captured_directly_once_capture_was_called_again(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        run(conn, "CREATE TABLE sale_3 PARTITION OF sale FOR VALUES FROM (20) TO (30)")
        run(conn, "INSERT INTO sale VALUES (4, 21, 'n', 400)")
        run(conn, "INSERT INTO sale_3 VALUES (5, 22, 'n', 500)")
        # The partition is marked by who writes to the table; nobody sees who writes to itself.
        assert logged(conn, log_name) == [MARK, (1, 4, 400)]  # which is why there are shapes
        assert shape_of(conn, log_name) is None

        assert LOG.recapture(conn) == ["public.sale"]
        assert LOG.recapture(conn) == []
        run(conn, "INSERT INTO sale_3 VALUES (6, 23, 'n', 600)")

        assert logged(conn, log_name) == [MARK, (1, 4, 400), (1, 6, 600)]
        assert shape_of(conn, log_name) is not None


@pytest.mark.usefixtures("log_name")
@pytest.mark.parametrize("comes_back", ["TO (5)", None])
def test_a_partition_that_moved_is_known_again_after_recapture(
    engine: Engine, comes_back: str | None
) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE sale DETACH PARTITION sale_1")
        if comes_back:
            conn.execute(
                text("ALTER TABLE sale ATTACH PARTITION sale_1 FOR VALUES FROM (0) TO (5)")
            )

    with engine.begin() as conn:
        assert LOG.recapture(conn) == ["public.sale"]
        # Until then each statement has to find out what has moved.
        assert LOG.recapture(conn) == []


def test_a_partition_that_brings_another_key_is_looked_at_by_that_key(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        run(
            conn,
            "CREATE TABLE sale_3 PARTITION OF sale FOR VALUES FROM (20) TO (30)"
            " PARTITION BY RANGE (cents);"
            "CREATE TABLE sale_3_low PARTITION OF sale_3 FOR VALUES FROM (0) TO (10);"
            "CREATE TABLE sale_3_high PARTITION OF sale_3 DEFAULT;",
        )
        LOG.capture(conn, "sale", [])
        run(conn, "INSERT INTO sale VALUES (4, 21, 'n', 4)")
        run(conn, "UPDATE sale SET cents = 40 WHERE id = 4")

        assert (0, None, None) in logged(conn, log_name)


def test_what_was_detached_logs_nothing_any_more(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE sale DETACH PARTITION sale_1")
        run(conn, "ALTER TABLE sale DETACH PARTITION sale_2")
        for relation in ("sale_1", "sale_2", "sale_2_north"):
            run(conn, f"UPDATE {relation} SET cents = cents + 1; TRUNCATE {relation}")  # noqa: S608

        assert logged(conn, log_name) == []


@pytest.mark.usefixtures("log_name")
def test_what_was_detached_can_be_captured_on_its_own(engine: Engine) -> None:
    with engine.begin() as conn:
        run(conn, "ALTER TABLE sale DETACH PARTITION sale_1")
        own = LOG.capture(conn, "sale_1", ["id", "cents"])
        run(conn, "UPDATE sale_1 SET cents = 1")

        assert logged(conn, own) == [(-1, 1, 100), (1, 1, 1)]
        assert shape_of(conn, own) is not None


def test_a_partition_that_is_being_detached_is_not_trusted(engine: Engine, log_name: str) -> None:
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")

    def detach() -> None:
        with alone.connect() as conn:
            run(conn, "ALTER TABLE sale DETACH PARTITION sale_1 CONCURRENTLY")

    with engine.connect() as reader, alone.connect() as other:
        run(reader, "SELECT FROM sale")
        detaching = threading.Thread(target=detach)
        detaching.start()
        pending = text("SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)")
        wait_until(lambda: bool(other.scalar(pending)), deadline_seconds=30)

        shape = shape_of(other, log_name)
        run(other, "UPDATE sale_1 SET cents = 1")
        with engine.begin() as conn, pytest.raises(CaptureRefusedError, match="FINALIZE"):
            LOG.recapture(conn)
        reader.rollback()
        detaching.join(timeout=30)

        assert shape is None
        assert logged(other, log_name) == []
        assert shape_of(other, log_name) is not None


QUIET = [
    "ANALYZE sale",
    "TRUNCATE sale",
    "CREATE INDEX ON sale (id)",
    "ALTER TABLE sale ADD COLUMN note text",
    "ALTER TABLE sale ALTER region SET DEFAULT 'n'",
    "GRANT SELECT ON sale TO PUBLIC",
    "ALTER TABLE sale ADD CHECK (id > 0)",
    (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER mine BEFORE UPDATE ON sale FOR EACH ROW EXECUTE FUNCTION f()"
    ),
]
SILENT = [  # what changes rows, or who logs them, and fires nothing
    "ALTER TABLE sale DETACH PARTITION sale_1",
    "DROP TABLE sale_2_north",
    "ALTER TABLE sale_1 DISABLE TRIGGER ALL",
    "ALTER TABLE sale DISABLE TRIGGER ALL; ALTER TABLE sale ENABLE TRIGGER ALL",
    "ALTER TABLE sale RENAME cents TO pence",
    "ALTER TABLE sale RENAME cents TO x; ALTER TABLE sale RENAME x TO cents",
    "ALTER TABLE sale_1 SET UNLOGGED",
    "ALTER TABLE sale_1 ENABLE ROW LEVEL SECURITY",
    "DROP TRIGGER datapatterns_capture_update ON sale_2",
    "ALTER TABLE sale RENAME TO sold",
    (
        "CREATE TABLE all_sales (id int, day int, region text, cents int) PARTITION BY LIST (id);"
        "ALTER TABLE all_sales ATTACH PARTITION sale DEFAULT"
    ),
    (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        'CREATE TRIGGER "~~" BEFORE UPDATE ON sale FOR EACH ROW EXECUTE FUNCTION f()'
    ),
    "DROP TABLE sale",
]


@pytest.mark.parametrize("statement", QUIET, ids=[f"quiet_{n}" for n in range(len(QUIET))])
def test_what_changes_no_row_leaves_the_shape_as_it_is(
    engine: Engine, log_name: str, statement: str
) -> None:
    with engine.begin() as conn:
        before = shape_of(conn, log_name)
        run(conn, statement)

        assert shape_of(conn, log_name) == before is not None


@pytest.mark.parametrize("statement", SILENT, ids=[f"silent_{n}" for n in range(len(SILENT))])
def test_the_shape_tells_of_what_no_trigger_tells(
    engine: Engine, log_name: str, statement: str
) -> None:
    with engine.begin() as conn:
        run(conn, "DROP VIEW datapatterns.capture_guard_" + log_name.removeprefix("change_log_"))
        before = shape_of(conn, log_name)
        run(conn, statement)

        assert shape_of(conn, log_name) != before


def test_vacuum_leaves_the_shape_as_it_is(engine: Engine, log_name: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        before = shape_of(conn, log_name)
        for relation in ("sale", "pg_attribute", "pg_trigger", "pg_inherits", "sale_1"):
            run(conn, f"VACUUM (FULL, FREEZE) {relation}")

        assert shape_of(conn, log_name) == before is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER TABLE sale_1 SET UNLOGGED", "of its partition public.sale_1, it is unlogged"),
        ("ALTER TABLE sale_2_north ENABLE ROW LEVEL SECURITY", "row-level security"),
        (("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
         'CREATE TRIGGER "~~" BEFORE UPDATE ON sale FOR EACH ROW EXECUTE FUNCTION f()'), "'~~'"),
        (("CREATE EXTENSION IF NOT EXISTS postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER"
         " postgres_fdw; CREATE FOREIGN TABLE f PARTITION OF sale DEFAULT SERVER s"), "foreign"),
    ],
    ids=["unlogged", "secured", "late_trigger", "foreign"],
)  # fmt: skip
def test_partitions_that_cannot_be_captured_are_named(
    conn: Connection, change: str, reason: str
) -> None:
    run(conn, SALES)
    if "postgres_fdw" in change and not conn.scalar(
        text("SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'")
    ):
        pytest.skip("the server has no foreign data wrapper")
    run(conn, change)

    with pytest.raises(CaptureRefusedError, match=reason):
        LOG.capture(conn, "sale", ["id"])


def test_neither_a_partition_nor_the_parent_of_a_captured_table_is_captured(
    conn: Connection,
) -> None:
    run(conn, SALES)
    with pytest.raises(CaptureRefusedError, match="part of sale, through which"):
        LOG.capture(conn, "sale_1", ["id"])

    run(conn, "ALTER TABLE sale DETACH PARTITION sale_1")
    LOG.capture(conn, "sale_1", ["id"])
    run(conn, "ALTER TABLE sale ATTACH PARTITION sale_1 FOR VALUES FROM (0) TO (10)")

    with pytest.raises(CaptureRefusedError, match="sale_1 is captured on its own"):
        LOG.capture(conn, "sale", ["id"])


@pytest.mark.skipif("LEAST_RIGHTS" in os.environ, reason="it takes on a role of its own")
def test_a_role_that_does_not_own_the_table_is_told_so(engine: Engine, log_name: str) -> None:
    with engine.connect() as conn:
        run(conn, "CREATE TABLE sale_3 PARTITION OF sale FOR VALUES FROM (20) TO (30)")
        run(conn, "CREATE ROLE datapatterns_test_worker")
        for granted in ("USAGE ON SCHEMA datapatterns", "SELECT ON ALL TABLES IN SCHEMA public"):
            run(conn, f"GRANT {granted} TO datapatterns_test_worker")
        run(conn, "GRANT SELECT ON ALL TABLES IN SCHEMA datapatterns TO datapatterns_test_worker")
        run(conn, "SET LOCAL ROLE datapatterns_test_worker")

        with pytest.raises(MissingRightsError, match=r"permission denied|must be owner"):
            LOG.recapture(conn)
        conn.rollback()
        assert shape_of(conn, log_name) is not None


def test_capture_waits_for_writers_of_partitions(engine: Engine, log_name: str) -> None:
    def recapture() -> None:
        with engine.begin() as conn:
            LOG.recapture(conn)

    with engine.begin() as conn:
        run(conn, "CREATE TABLE sale_3 PARTITION OF sale FOR VALUES FROM (20) TO (30)")
    with engine.connect() as writer:
        run(writer, "INSERT INTO sale_3 VALUES (4, 21, 'n', 400)")  # nobody logs it
        capturing = threading.Thread(target=recapture)
        capturing.start()
        until_blocked_by(engine, writer)
        writer.commit()
        capturing.join(timeout=30)

    with engine.connect() as conn:
        assert shape_of(conn, log_name) is not None


def test_a_partitioned_table_is_released(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn:
        LOG.release(conn, "sale")
        run(conn, "UPDATE sale SET day = 15, cents = 0")
        left = text("SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%capture%'")

        assert conn.scalar(left) == 0
        with pytest.raises(DBAPIError, match=log_name):
            run(conn, f"SELECT FROM datapatterns.{log_name}")
