"""Logs that were installed before there were batches become views of both, and nothing is lost."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.change_log import ChangeLog
from datapatterns.change_log.capture_names import CaptureNames, batches_name, capture_names
from datapatterns.change_log.capturing import is_captured
from datapatterns.sql.migrating import downgrade, upgrade
from tests.fixtures.blocking import until_blocked_by, until_waiting

pytestmark = pytest.mark.postgres

LOG = ChangeLog()
COLUMNS: dict[str, dict[str, str]] = {
    "item": {"id": "integer", "note": "character varying(20)", "price": "numeric(12,2)"},
    "counted": {},
    "odd": {'we"ird ; name': 'text COLLATE "C"', "logged": "integer", "found": "double precision"},
    "doc": {"id": "integer", "body": "jsonb"},
    "vast": {f"n{number}": "numeric" for number in range(13)},
}
IMAGES = {"price": '"price"::text AS "image of 2"', "found": '"found"::text AS "image of 2"'}
IMAGES["body"] = '"body"::text AS "image of 1"'

# What capture installed until then, word for word.
LOG_TABLE = """
CREATE TABLE {log} (
    change_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    change_sign smallint NOT NULL{columns},
    change_partition jsonb
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX ON {log} (change_xid);
ALTER TABLE {log} REPLICA IDENTITY FULL;
"""
UPDATE = """
        INSERT INTO {log} ({into})
        SELECT {removed} FROM (
            SELECT {compared} FROM old_rows EXCEPT ALL SELECT {compared} FROM new_rows) AS q
        UNION ALL
        SELECT {added} FROM (
            SELECT {compared} FROM new_rows EXCEPT ALL SELECT {compared} FROM old_rows) AS q;
"""
FUNCTION = """
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $body${conflict}
BEGIN
    CASE TG_OP
    WHEN 'INSERT' THEN
        INSERT INTO {log} ({into}) SELECT {added} FROM new_rows;
    WHEN 'DELETE' THEN
        INSERT INTO {log} ({into}) SELECT {removed} FROM old_rows;
    WHEN 'UPDATE' THEN
        {update}
    WHEN 'TRUNCATE' THEN
        INSERT INTO {log} (change_sign) VALUES (0);
    END CASE;
    RETURN NULL;
END
$body$;
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;
"""
TRIGGERS = """
CREATE TRIGGER datapatterns_capture_insert AFTER INSERT ON {table}
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {function}();
CREATE TRIGGER datapatterns_capture_delete AFTER DELETE ON {table}
REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {function}();
CREATE TRIGGER datapatterns_capture_update AFTER UPDATE ON {table}
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION {function}();
CREATE TRIGGER datapatterns_capture_truncate AFTER TRUNCATE ON {table}
FOR EACH STATEMENT EXECUTE FUNCTION {function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER datapatterns_capture_insert,
  ENABLE ALWAYS TRIGGER datapatterns_capture_delete,
  ENABLE ALWAYS TRIGGER datapatterns_capture_update,
  ENABLE ALWAYS TRIGGER datapatterns_capture_truncate;
INSERT INTO datapatterns.captured_table (log_name, table_schema, table_name)
VALUES ('{log_name}', 'public', '{table}');
"""


def run(conn: Connection, *statements: str) -> None:
    for statement in statements:
        conn.exec_driver_sql(statement, execution_options={"no_parameters": True})


def names_of(table: str) -> CaptureNames:
    return capture_names(LOG.schema, "public", table)


def quoted(name: str) -> str:
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def capture_as_before(conn: Connection, table: str) -> None:
    names, columns = names_of(table), COLUMNS[table]
    listed = "".join(f", {quoted(name)}" for name in columns)
    images = [IMAGES[name] for name in columns if name in IMAGES]
    if table == "vast":
        images = [f'"n{number}"::text AS "image of {number}"' for number in range(13)]
    parts = {
        "table": table,
        "log_name": names.log_name,
        "log": names.log.as_string(None),
        "function": names.function.as_string(None),
        "columns": "".join(f", {quoted(name)} {kind}" for name, kind in columns.items()),
        "into": f'"change_xid", "change_sign"{listed}',
        "added": f"(SELECT pg_current_xact_id()), 1{listed}",
        "removed": f"(SELECT pg_current_xact_id()), -1{listed}",
        "compared": ", ".join([*map(quoted, columns), *images]),
        "conflict": "\n#variable_conflict use_column" if "found" in columns else "",
    }
    parts["update"] = UPDATE.format(**parts) if columns else "NULL;  -- no column matters"
    more = [f"{quoted(name)} {kind}" for name, kind in columns.items()]
    run(
        conn,
        f"CREATE TABLE {table} ({', '.join([*more, 'unread int'])})",
        LOG_TABLE.format(**parts),
        FUNCTION.format(**parts),
        TRIGGERS.format(**parts),
    )


def logged(conn: Connection, table: str) -> list[tuple[Any, ...]]:
    log = names_of(table).log.as_string(None)
    rows = text(f"SELECT change_sign, count(*) FROM {log} GROUP BY 1 ORDER BY 1")  # noqa: S608
    return [tuple(row) for row in conn.execute(rows)]


@pytest.fixture
def before(engine: Engine) -> Engine:
    """A database at the revision before, whose tables are captured and have been written."""
    with engine.begin() as conn:
        downgrade(conn, "dp0025")
        for table in COLUMNS:
            capture_as_before(conn, table)
    with engine.begin() as conn:
        run(conn, "INSERT INTO item VALUES (1, 'tea', 2.5), (2, 'rice', 3), (3, NULL, NULL)")
        run(conn, "INSERT INTO counted VALUES (1), (2)", "INSERT INTO doc VALUES (1, '{}')")
    return engine


@pytest.mark.parametrize("table", COLUMNS)
def test_a_log_of_before_is_as_one_that_is_captured_now(before: Engine, table: str) -> None:
    with before.begin() as conn:
        shape = text("SELECT datapatterns.capture_shape(:log)")
        known = conn.scalar(shape, {"log": names_of(table).log_name})
        kept = logged(conn, table)
        assert known is not None

        upgrade(conn)

        assert is_captured(conn, table, COLUMNS[table], schema=LOG.schema)
        assert conn.scalar(shape, {"log": names_of(table).log_name}) == known
        assert logged(conn, table) == kept


def test_writers_go_on_in_batches(before: Engine) -> None:
    with before.begin() as conn:
        upgrade(conn)
    with before.begin() as conn:
        run(
            conn,
            "INSERT INTO item SELECT g, 'x', g / 4.0 FROM generate_series(11, 110) g",
            "UPDATE item SET price = 1.00 WHERE id > 60",
            "DELETE FROM item WHERE id = 1",
        )
    with before.begin() as conn:
        assert logged(conn, "item") == [(-1, 51), (1, 153)]
        batches = f"datapatterns.{batches_name(names_of('item').log_name)}"
        assert conn.scalar(text(f"SELECT count(*) FROM {batches}")) == 3  # noqa: S608

        assert LOG.collect_garbage(conn) == 204 + 3  # with those of the other tables


def test_what_reads_a_log_reads_its_batches_too(before: Engine) -> None:
    log = names_of("item").log.as_string(None)
    with before.begin() as conn:
        run(
            conn,
            f"CREATE VIEW notes WITH (security_barrier) AS SELECT change_sign, note FROM {log}"  # noqa: S608
            " WHERE note IN ('tea', 'rice')",
            "CREATE VIEW upon AS SELECT count(*) AS n FROM notes",
            "CREATE ROLE datapatterns_test_reader",
            f"GRANT SELECT, DELETE ON {log} TO datapatterns_test_reader",
            "GRANT USAGE ON SCHEMA datapatterns TO datapatterns_test_reader",
        )
        upgrade(conn)
        run(conn, "INSERT INTO item SELECT 1, 'tea', 1 FROM generate_series(1, 50)")

        assert conn.scalar(text("SELECT n FROM upon")) == 52
        options = text("SELECT reloptions FROM pg_class WHERE relname = 'notes'")
        assert conn.scalar(options) == ["security_barrier=true"]
        run(conn, "SET LOCAL ROLE datapatterns_test_reader")
        assert logged(conn, "item") == [(1, 53)]
        for part in (names_of("item").rows, names_of("item").batches):
            run(conn, f"DELETE FROM {part.as_string(None)}")  # noqa: S608
        assert logged(conn, "item") == []
        conn.rollback()


def test_who_reads_a_view_of_the_log_is_waited_for(before: Engine) -> None:
    log = names_of("item").log.as_string(None)
    with before.begin() as conn:
        run(
            conn,
            f"CREATE VIEW notes AS SELECT change_sign FROM {log}",  # noqa: S608
            "CREATE TABLE gate ()",
            "CREATE VIEW upon AS SELECT FROM notes CROSS JOIN gate",
        )
    with before.connect() as gate, ThreadPoolExecutor() as pool:
        run(gate, "LOCK TABLE gate")
        reading = pool.submit(_in_transaction, before, lambda c: run(c, "SELECT FROM upon"))
        # It has locked both views by now, and comes for the log later.
        until_blocked_by(before, gate)
        migrating = pool.submit(_in_transaction, before, upgrade)
        until_waiting(before, 2)
        gate.commit()

        reading.result()
        migrating.result()
    with before.connect() as conn:
        assert logged(conn, "item") == [(1, 3)]


def _in_transaction(engine: Engine, work: Callable[[Connection], object]) -> None:
    with engine.begin() as conn:
        work(conn)


def test_what_cannot_be_told_anew_is_named(before: Engine) -> None:
    log = names_of("item").log.as_string(None)
    with before.connect() as conn:
        run(conn, f"CREATE MATERIALIZED VIEW copied AS SELECT change_sign FROM {log}")  # noqa: S608

        with pytest.raises(DBAPIError, match=r"materialized view .*copied depends on"):
            upgrade(conn)


def test_a_function_of_somebody_elses_goes_on_row_by_row(before: Engine) -> None:
    names = names_of("item")
    log = names.log.as_string(None)
    with before.begin() as conn:
        run(
            conn,
            f"CREATE OR REPLACE FUNCTION {names.function.as_string(None)}() RETURNS trigger"  # noqa: S608
            f" LANGUAGE plpgsql AS $$BEGIN INSERT INTO {log} (change_sign) VALUES (0);"
            " RETURN NULL; END$$",
        )
        upgrade(conn)
        run(conn, "INSERT INTO item SELECT 1, 'tea', 1 FROM generate_series(1, 50)")

        assert logged(conn, "item") == [(0, 1), (1, 3)]
        assert not is_captured(conn, "item", ["id"], schema=LOG.schema)
        LOG.capture(conn, "item", ["id"])
        assert is_captured(conn, "item", ["id"], schema=LOG.schema)


def test_a_log_whose_table_is_gone_is_converted_too(before: Engine) -> None:
    with before.begin() as conn:
        run(conn, "DROP TABLE item")
        upgrade(conn)

        assert logged(conn, "item") == [(1, 3)]
        LOG.release(conn, "item")


def test_who_goes_back_has_to_release_first(before: Engine) -> None:
    with before.begin() as conn:
        upgrade(conn)
    with before.connect() as conn, pytest.raises(DBAPIError, match="release them first"):
        downgrade(conn, "dp0025")
    with before.begin() as conn:
        for table in COLUMNS:
            LOG.release(conn, table)
        downgrade(conn, "dp0025")
