"""Loads look things up by index, of one stream and of many, however much else is stored."""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Connection, text

from datapatterns.event_sourcing import EventStore, StreamId
from datapatterns.event_sourcing.states.load_statement import (
    Asked,
    further_statement,
    load_statement,
)
from tests.fixtures.tills import Scanned, Till, types

pytestmark = pytest.mark.postgres
store = EventStore(types=types)
PARAMETERS: dict[str, Any] = {
    "tenant": "", "category": "till", "key": "7", "keys": ["7"], "names": ["till.scanned"],
    "aggregate": "Till", "fingerprint": bytes(32), "version": 9, "after": 5, "limit": 100,
    "at": datetime(2026, 1, 1, tzinfo=UTC),
}  # fmt: skip


@pytest.fixture
def filled(conn: Connection) -> Connection:
    for key in range(300):
        stream = StreamId("till", str(key))
        store.append(conn, stream, [Scanned(n, n) for n in range(20)], expected_version=0)
        store.save_snapshot(conn, store.load(conn, Till, str(key), version=15))
    for table in ("event", "event_archive", "stream", "snapshot", "event_type"):
        conn.execute(text(f"ANALYZE datapatterns.{table}"))
    return conn


def plan(conn: Connection, statement: str) -> str:
    used = {name: value for name, value in PARAMETERS.items() if f"%({name})s" in statement}
    return "\n".join(row[0] for row in conn.exec_driver_sql(f"EXPLAIN {statement}", used))


def test_a_load_finds_stream_snapshot_and_events_by_index(filled: Connection) -> None:
    for snapshots, by_version, by_time in product([False, True], repeat=3):
        asked = Asked(snapshots, by_version, by_time, bound=False)

        shown = plan(filled, load_statement("datapatterns", asked))

        assert "uq_stream_tenant_category_key" in shown
        assert "uq_event_stream_id_version" in shown
        assert ("pk_snapshot" in shown) is snapshots
        for table in ("event", "stream", "snapshot"):
            assert f"Seq Scan on {table} " not in shown


def test_further_pages_do_so_too(filled: Connection) -> None:
    asked = Asked(snapshots=False, by_version=True, by_time=False, bound=False)

    shown = plan(filled, further_statement("datapatterns", asked))

    assert "uq_event_stream_id_version" in shown
    assert "Seq Scan on event " not in shown
