"""Loads look things up by index, of one stream and of many, however much else is stored."""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, text

from datapatterns.event_sourcing import EventStore, StreamId
from datapatterns.event_sourcing.states.load_statement import Further, further_statement
from tests.fixtures.tills import Scanned, Till, types

pytestmark = pytest.mark.postgres
store = EventStore(types=types)
PARAMETERS: dict[str, Any] = {
    "tenant": "", "category": "till", "key": "7", "version": 9, "after": 5, "limit": 100,
}  # fmt: skip
LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def filled(conn: Connection) -> Connection:
    for key in range(300):
        stream = StreamId("till", str(key))
        store.append(conn, stream, [Scanned(n, n) for n in range(20)], expected_version=0)
        store.save_snapshot(conn, store.load(conn, Till, str(key), version=15))
    for table in ("event", "event_archive", "stream", "snapshot", "event_type"):
        conn.execute(text(f"ANALYZE datapatterns.{table}"))
    return conn


def scans(conn: Connection) -> dict[str, tuple[int, int, int]]:
    """Return how often each table was scanned in this transaction, by index, and rows fetched."""
    rows = conn.execute(
        text(
            "SELECT relname, seq_scan, idx_scan, idx_tup_fetch + seq_tup_read"
            " FROM pg_stat_xact_user_tables WHERE schemaname = 'datapatterns'"
        )
    )
    return {name: (seq, idx or 0, rows or 0) for name, seq, idx, rows in rows}


@pytest.mark.parametrize("moment", [{}, {"version": 17}, {"at": LATER}], ids=["now", "v", "at"])
def test_a_load_finds_stream_snapshot_and_events_by_index(
    filled: Connection, moment: dict[str, Any]
) -> None:
    before = scans(filled)

    store.load(filled, Till, "7", **moment)

    after = scans(filled)
    for table, indexed, fetched in (("stream", 1, 1), ("snapshot", 1, 1), ("event", 2, 6)):
        sequential, by_index, rows = (
            now - then for now, then in zip(after[table], before[table], strict=True)
        )
        assert (sequential, by_index, rows <= fetched) == (0, indexed, True), table


def test_further_pages_do_so_too(filled: Connection) -> None:
    for by_time, bound in product([False, True], repeat=2):
        statement = further_statement("datapatterns", Further(by_time, bound))
        used = PARAMETERS | ({"at": LATER} if by_time else {})

        rows = filled.exec_driver_sql(f"EXPLAIN {statement}", used)

        shown = "\n".join(row[0] for row in rows)
        assert "uq_event_stream_id_version" in shown
        assert "Seq Scan on event " not in shown
