"""What many rows of one statement are logged as, and that they are read as rows are."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.change_log import ChangeLog
from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.change_log.capturing import is_captured
from datapatterns.change_log.releasing import narrow
from datapatterns.errors import CapturedTableInUseError
from tests.fixtures.blocking import until_blocked_by, until_waiting
from tests.fixtures.view_tables import run

LOG = ChangeLog()
KINDS = {
    "integer": "g",
    "bigint": "g",
    "boolean": "g % 2 = 0",
    "numeric(12,2)": "g / 4.0",
    "numeric": "('1.' || repeat('0', g % 5))::numeric",
    "double precision": "CASE g % 3 WHEN 0 THEN 'NaN' ELSE '-0' END::float",
    "text": "nullif('x' || g % 7, 'x3')",
    'text COLLATE "C"': "'x' || g",
    "varchar(20)": "'v' || g",
    "char(4)": "'c' || g % 9",
    '"char"': "'c'",
    "name": "'n' || g",
    "bytea": "decode(lpad(g::text, 8, '0'), 'hex')",
    "uuid": "md5(g::text)::uuid",
    "date": "date '2026-01-01' + g",
    "timestamp(3) with time zone": "timestamptz '2026-01-01 10:00:00.1234+02' + g * interval '1 s'",
    "interval day to second(2)": "g * interval '1.234 s'",
    "mood": "CASE g % 2 WHEN 0 THEN 'glad' ELSE 'sad' END::mood",
    "price": "g + 0.5",
    "short": "'s' || g % 3",
    "jsonb": "jsonb_build_object('n', g)",
    "integer[]": "CASE g % 3 WHEN 0 THEN NULL WHEN 1 THEN ARRAY[g] ELSE ARRAY[g, g] END",
    "int4range": "int4range(g, g + 2)",
    "inet": "'10.0.0.0'::inet + g",
    "bit varying": "g::bit(8)::bit varying",
}


def stored(conn: Connection, log_name: str) -> tuple[int, list[int]]:
    """Return how many rows of a log are single, and how many changes each of the others has."""
    rows = text(f"SELECT count(*) FROM datapatterns.{rows_name(log_name)}")  # noqa: S608
    batches = text(
        f'SELECT "image of rows" FROM datapatterns.{batches_name(log_name)} ORDER BY 1 DESC'  # noqa: S608
    )
    return conn.execute(rows).scalar_one(), [*conn.scalars(batches)]


def net(conn: Connection, log_name: str, columns: str) -> list[tuple[Any, ...]]:
    """Return the rows that a log says the table has, with their images as text, and how often."""
    return [
        tuple(row)
        for row in conn.execute(
            text(
                f"SELECT ROW({columns})::text, sum(change_sign) FROM datapatterns.{log_name}"  # noqa: S608
                " GROUP BY 1 HAVING sum(change_sign) <> 0 ORDER BY 1"
            )
        )
    ]


def held(conn: Connection, table: str, columns: str) -> list[tuple[Any, ...]]:
    """Return the rows that the table has, in the same way."""
    rows = f"SELECT ROW({columns})::text, count(*) FROM {table} GROUP BY 1 ORDER BY 1"  # noqa: S608
    return [tuple(row) for row in conn.execute(text(rows))]


@pytest.fixture
def log_name(engine: Engine) -> str:
    """The log of a table with a number and a text."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE item (id int, note text)"))
        return LOG.capture(conn, "item", ["id", "note"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_many_rows_of_any_type_become_is_what_the_log_shows(
    conn: Connection, kind: str
) -> None:
    run_all = [
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE DOMAIN price AS numeric(8,2) NOT NULL CHECK (VALUE > 0)",
        "CREATE DOMAIN short AS varchar(3)",
        f"CREATE TABLE item (id int, value {kind})",
    ]
    for statement in run_all:
        conn.execute(text(statement))
    log_name = LOG.capture(conn, "item", ["id", "value"])
    fill = f"INSERT INTO item SELECT g, {KINDS[kind]} FROM generate_series(1, 1100) g"  # noqa: S608

    for statement in (
        fill,
        "UPDATE item SET id = -id WHERE id % 3 = 0",
        "UPDATE item SET id = 1, value = value WHERE id = 1",
        "DELETE FROM item WHERE abs(id) > 500",
    ):
        conn.exec_driver_sql(statement, execution_options={"no_parameters": True})
        assert net(conn, log_name, "id, value") == held(conn, "item", "id, value")

    types = text(
        "SELECT DISTINCT format_type(atttypid, atttypmod), attcollation FROM pg_attribute"
        " WHERE attname = 'value' AND attrelid = ANY (CAST(:names AS regclass[]))"
    )
    names = [f"datapatterns.{log_name}", f"datapatterns.{rows_name(log_name)}"]
    assert len(conn.execute(types, {"names": names}).all()) == 1
    unbounded = {"jsonb", "integer[]", "int4range", "inet", "bit varying"}
    assert bool(stored(conn, log_name)[1]) == (kind not in unbounded)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (0, (0, [])),
        (1, (1, [])),
        (16, (16, [])),
        (17, (16, [1])),
        (1000, (16, [984])),
        (2500, (16, [1000, 984, 500])),
    ],
)
def test_the_first_rows_of_a_statement_are_single(
    engine: Engine, log_name: str, rows: int, expected: tuple[int, list[int]]
) -> None:
    fill = "INSERT INTO item SELECT g, 'x' FROM generate_series(1, {}) g"
    run(engine, fill.format(rows))

    with engine.connect() as conn:
        assert stored(conn, log_name) == expected
        assert net(conn, log_name, "id, note") == held(conn, "item", "id, note")


@pytest.mark.parametrize("event", ["INSERT", "UPDATE from", "UPDATE to", "DELETE"])
def test_long_values_are_logged_row_by_row(engine: Engine, log_name: str, event: str) -> None:
    fill = "INSERT INTO item SELECT g, repeat('x', {}) FROM generate_series(1, 100) g"
    long, short = fill.format(1001), fill.format(1000)
    statements = {
        "INSERT": (short, long),
        "UPDATE from": (long, "UPDATE item SET note = ''"),
        "UPDATE to": (short, "UPDATE item SET note = repeat('x', 1001)"),
        "DELETE": (long, "DELETE FROM item"),
    }
    run(engine, statements[event][0], f"DELETE FROM datapatterns.{batches_name(log_name)}")  # noqa: S608

    run(engine, statements[event][1])

    with engine.connect() as conn:
        assert stored(conn, log_name)[1] == []


def test_rows_without_captured_columns_are_counted(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE item (id int)"))
        log_name = LOG.capture(conn, "item", [])
    run(
        engine,
        "INSERT INTO item SELECT generate_series(1, 50)",
        "DELETE FROM item WHERE id <= 30",
    )

    with engine.connect() as conn:
        signs = text(f"SELECT count(*), sum(change_sign) FROM datapatterns.{log_name}")  # noqa: S608
        assert conn.execute(signs).one() == (80, 20)
        assert stored(conn, log_name) == (32, [34, 14])


def test_batches_hold_a_column_that_came_later_or_went(engine: Engine, log_name: str) -> None:
    fill = "INSERT INTO item SELECT g, 'x', 7 FROM generate_series(1, 40) g"
    run(engine, "ALTER TABLE item ADD COLUMN more int", fill)
    with engine.begin() as conn:
        LOG.capture(conn, "item", ["more"])
    run(engine, fill)
    with engine.begin() as conn:
        narrow(conn, "item", ["more"], schema=LOG.schema)
    run(engine, fill)
    with engine.begin() as conn:
        LOG.capture(conn, "item", ["note"])  # of another type by now
        conn.execute(text("ALTER TABLE item ADD COLUMN odd jsonb"))
        LOG.capture(conn, "item", ["odd"])
    run(engine, "INSERT INTO item SELECT g, 'y', 8, '{}' FROM generate_series(1, 40) g")
    with engine.begin() as conn:
        narrow(conn, "item", ["more", "note"], schema=LOG.schema)
    run(engine, "INSERT INTO item SELECT g, 'z', 9, '{}' FROM generate_series(1, 40) g")

    with engine.connect() as conn:
        logged = text(
            f"SELECT more, note, count(*) FROM datapatterns.{log_name} GROUP BY 1, 2 ORDER BY 1, 2"  # noqa: S608
        )
        assert conn.execute(logged).all() == [
            (7, None, 80),
            (8, "y", 40),
            (9, "z", 40),
            (None, None, 40),
        ]
        # While jsonb was captured, each row was single.
        assert stored(conn, log_name) == (16 * 4 + 40, [24] * 4)


def test_who_reads_a_log_that_gets_wider_waits_and_goes_on(engine: Engine, log_name: str) -> None:
    def capture_more() -> None:
        with engine.begin() as conn:
            LOG.capture(conn, "item", ["more"])

    def read() -> object:
        with engine.connect() as conn:
            return conn.scalar(text(f"SELECT count(*) FROM datapatterns.{log_name}"))  # noqa: S608

    run(engine, "ALTER TABLE item ADD COLUMN more int", "INSERT INTO item VALUES (1, 'x', 1)")
    with engine.connect() as gate, ThreadPoolExecutor() as pool:
        batches = f"datapatterns.{batches_name(log_name)}"
        gate.execute(text(f"LOCK TABLE {batches} IN ACCESS SHARE MODE"))
        capturing = pool.submit(capture_more)
        until_blocked_by(engine, gate)
        # Whoever had the view and waited for its tables would be waited for.
        reading = pool.submit(read)
        until_waiting(engine, 2)
        gate.commit()

        assert reading.result() == 1
        capturing.result()


@pytest.mark.usefixtures("log_name")
@pytest.mark.parametrize("how", ["capture", "release"])
def test_who_captures_waits_for_who_collects_before_he_has_the_log(
    engine: Engine, how: str
) -> None:
    def change() -> None:
        with engine.begin() as conn:
            if how == "capture":
                LOG.capture(conn, "item", ["more"])
            else:
                LOG.release(conn, "item")

    run(engine, "ALTER TABLE item ADD COLUMN more int", "INSERT INTO item VALUES (1, 'x', 1)")
    with engine.connect() as collecting, ThreadPoolExecutor() as pool:
        # What it begins with; its DELETE comes for the log later.
        collecting.execute(text("SELECT FROM datapatterns.captured_table FOR UPDATE"))
        changing = pool.submit(change)
        until_blocked_by(engine, collecting)
        assert LOG.collect_garbage(collecting) == 1
        collecting.commit()
        changing.result()

    with engine.connect() as conn:
        wanted = ["id", "note", "more"]
        assert is_captured(conn, "item", wanted, schema=LOG.schema) == (how == "capture")


@pytest.mark.usefixtures("log_name")
def test_who_releases_waits_for_who_captures_before_he_has_more_than_the_table(
    engine: Engine,
) -> None:
    def release() -> None:
        with engine.begin() as conn:
            LOG.release(conn, "item")

    run(engine, "ALTER TABLE item ADD COLUMN more int")
    with engine.connect() as capturing, ThreadPoolExecutor() as pool:
        # What it begins with.
        capturing.execute(text("LOCK TABLE item IN SHARE ROW EXCLUSIVE MODE"))
        releasing = pool.submit(release)
        until_blocked_by(engine, capturing)
        LOG.capture(capturing, "item", ["more"])
        capturing.commit()
        releasing.result()


def test_garbage_is_collected_in_the_order_in_which_logs_are_locked(
    engine: Engine, log_name: str
) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE goods (id int)"))
        first = LOG.capture(conn, "goods", ["id"])

    def collect() -> None:
        with engine.begin() as conn:
            LOG.collect_garbage(conn)

    lock = "LOCK TABLE datapatterns.{} IN ACCESS EXCLUSIVE MODE"
    with engine.connect() as changing, ThreadPoolExecutor() as pool:
        changing.execute(text(lock.format(first)))
        collecting = pool.submit(collect)
        until_blocked_by(engine, changing)
        changing.execute(text(lock.format(log_name)))
        changing.commit()
        collecting.result()


def test_a_column_that_a_view_of_the_log_reads_stays(engine: Engine, log_name: str) -> None:
    run(engine, f"CREATE VIEW notes AS SELECT note FROM datapatterns.{log_name}")  # noqa: S608

    with (
        engine.connect() as conn,
        pytest.raises(CapturedTableInUseError, match="view notes"),
    ):
        narrow(conn, "item", ["id"], schema=LOG.schema)

    with engine.begin() as conn:
        narrow(conn, "item", ["note"], schema=LOG.schema)


def test_more_columns_than_a_row_of_arrays_can_hold_are_logged_row_by_row(engine: Engine) -> None:
    names = [f"c{number}" for number in range(101)]
    with engine.begin() as conn:
        conn.execute(text(f"CREATE TABLE item ({' int, '.join(names)} int)"))
        log_name = LOG.capture(conn, "item", names[1:])
        run_rows = text(
            f"INSERT INTO item SELECT {', '.join(['g'] * 101)} FROM generate_series(1, 1000) g"  # noqa: S608
        )
        conn.execute(run_rows)
        assert stored(conn, log_name) == (16, [984])
        LOG.capture(conn, "item", names)
        conn.execute(run_rows)
        assert stored(conn, log_name) == (1016, [984])


def test_more_numbers_of_any_length_than_a_row_can_hold_are_logged_row_by_row(
    engine: Engine,
) -> None:
    names = [f"c{number}" for number in range(13)]
    with engine.begin() as conn:
        conn.execute(
            text(f"CREATE TABLE item (p numeric(9, 2), {' numeric, '.join(names)} numeric)")
        )
        log_name = LOG.capture(conn, "item", ["p", *names[1:]])
        run_rows = text(
            f"INSERT INTO item SELECT {', '.join(['g'] * 14)} FROM generate_series(1, 1000) g"  # noqa: S608
        )
        conn.execute(run_rows)
        assert stored(conn, log_name) == (16, [984])
        LOG.capture(conn, "item", names)
        conn.execute(run_rows)
        assert stored(conn, log_name) == (1016, [984])


def test_garbage_in_batches_goes_by_the_limit(engine: Engine, log_name: str) -> None:
    run(engine, *["INSERT INTO item SELECT generate_series(1, 116)"] * 4)

    def collect(limit: int) -> int:
        with engine.begin() as conn:
            return LOG.collect_garbage(conn, limit=limit)

    assert collect(64) == 64 + 0  # the single rows
    assert collect(101) == 200  # a batch goes as a whole
    assert collect(1000) == 200
    assert collect(1000) == 0
    with engine.connect() as conn:
        assert stored(conn, log_name) == (0, [])
