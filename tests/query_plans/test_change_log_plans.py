"""Who reads what is pending reads nothing of what was consumed and is not collected yet."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Column, Connection, Engine, func, select, table, text

from datapatterns.change_log import ChangeLog, Xid8, not_shown_by
from datapatterns.change_log.capture_names import batches_name, rows_name
from datapatterns.change_log.consuming import read_consumer
from datapatterns.change_log.lagging import count_pending
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.view_tables import Line, create, create_tables, refresh, run

pytestmark = pytest.mark.postgres

LOG = ChangeLog()
SUMS = MaterializedView(
    "sums", select(Line.week, func.sum(Line.cents).label("cents")).group_by(Line.week)
)
CONSUMER = SUMS.definition.names.consumer
PAST = "DO $$BEGIN FOR i IN 1..6000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$"
CONSUMED = """
INSERT INTO datapatterns.{rows} (change_xid, change_sign, week, cents)
SELECT (3 + mod(g, 6000))::text::xid8, 1, 1, 1 FROM generate_series(1, 60000) g;
INSERT INTO datapatterns.{batches} (change_xid, change_sign, "image of rows", week, cents)
SELECT (3 + mod(g, 6000))::text::xid8, 1, 40, array_fill(1, ARRAY[40]), array_fill(1, ARRAY[40])
  FROM generate_series(1, 6000) g;
"""
PENDING = (
    "INSERT INTO line (id, week, cents) SELECT g, 2, 1 FROM generate_series(1000, 1999) g",
    "INSERT INTO line (id, week, cents) VALUES (2000, 2, 1)",
)


@pytest.fixture
def log_name(engine: Engine) -> Iterator[str]:
    """A log with much that was consumed, little that is pending, and somebody who still writes."""
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, SUMS)
    with engine.connect() as conn:
        log_name: str = conn.execute(
            text("SELECT log_name FROM datapatterns.captured_table")
        ).scalar_one()
    filled = CONSUMED.format(rows=rows_name(log_name), batches=batches_name(log_name))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text(PAST))
    with engine.connect() as writer:
        writer.execute(text("INSERT INTO line (id, week, cents) VALUES (1, 3, 1)"))
        run(engine, "INSERT INTO line (id, week, cents) VALUES (2, 2, 1)")
        refresh(engine, SUMS)
        run(engine, filled, *PENDING)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("VACUUM ANALYZE"))
        yield log_name


@contextmanager
def reading_no_whole_table(conn: Connection, log_name: str) -> Iterator[None]:
    """Check that neither all rows of a log are read, nor all its batches."""
    scans = text("SELECT pg_stat_get_xact_numscans(CAST(:t AS regclass))")
    names = [f"datapatterns.{part(log_name)}" for part in (rows_name, batches_name)]
    # Beside those of this transaction, the server may not have told of earlier ones yet.
    before = [conn.scalar(scans, {"t": name}) for name in names]
    yield
    assert [conn.scalar(scans, {"t": name}) for name in names] == before


def test_pending_changes_are_found_by_the_index(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn, reading_no_whole_table(conn, log_name):
        consumer = read_consumer(conn, CONSUMER, schema=LOG.schema)
        assert consumer is not None
        assert consumer.snapshot.in_progress
        log = table(log_name, Column("change_xid", Xid8), schema=LOG.schema)
        pending = select(func.count()).where(not_shown_by(consumer.snapshot, log.c.change_xid))

        assert conn.scalar(pending) == 1001
        assert count_pending(conn, CONSUMER, [log_name], schema=LOG.schema) == 1001


def test_a_view_as_of_now_reads_only_what_is_pending(engine: Engine, log_name: str) -> None:
    now = text("SELECT week, cents FROM datapatterns.sums_realtime ORDER BY week")
    with engine.begin() as conn, reading_no_whole_table(conn, log_name):
        assert conn.execute(now).all() == [(2, 1002)]


def test_a_refresh_reads_only_what_is_pending(engine: Engine, log_name: str) -> None:
    with engine.begin() as conn, reading_no_whole_table(conn, log_name):
        report = SUMS.refresh(conn)

    assert report is not None
    assert report.pending_rows == 1001
