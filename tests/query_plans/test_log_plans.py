"""No page of the log, whatever its filter, reads a whole table."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from datapatterns.cqrs.running.log_witness import WITNESS_EVENTS, read_witness, read_witnesses
from datapatterns.event_sourcing import (
    EventStore,
    LogFilter,
    Position,
    StreamId,
    publish_mark,
)

pytestmark = pytest.mark.postgres

store = EventStore()
TABLES = ["event", "event_archive", "event_tag", "stream"]
EVENTS = 30_000

FILL = """
INSERT INTO datapatterns.event_type (name, schema_version)
SELECT 'type.' || g, 1 FROM generate_series(1, 10) g;
INSERT INTO datapatterns.stream (version, created_at, last_at, tenant, category, key)
SELECT 20, now(), now(), '', 'c' || mod(g, 5), g::text FROM generate_series(1, 3000) g;
INSERT INTO datapatterns.event (stream_id, version, at, event_id, type_id, data, codec, tags)
SELECT 1 + mod(g, 3000), g, now() - interval '1 s' * (30000 - g), gen_random_uuid(),
       (SELECT min(id) FROM datapatterns.event_type) + mod(g, 10), '{"n": 1}', 0,
       CASE WHEN mod(g, 5000) = 0 THEN ARRAY['big', 'rare'] WHEN mod(g, 3) = 0 THEN ARRAY['big'] END
  FROM generate_series(1, 30000) g;
INSERT INTO datapatterns.event_archive
SELECT nextval('datapatterns.event_position'), stream_id, version + 90000, at, event_id, type_id,
       data, meta, payload, codec, tags
  FROM datapatterns.event WHERE mod(version, 5) = 0;
INSERT INTO datapatterns.event_tag
SELECT '', u.tag, position, type_id FROM datapatterns.event_all, unnest(tags) AS u (tag);
"""


@pytest.fixture(scope="module")
def filled(module_engine: Engine) -> Engine:
    with module_engine.begin() as conn:
        conn.execute(text(FILL))
        publish_mark(conn, store)
    with module_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM ANALYZE"))
    return module_engine


@pytest.fixture
def warm(filled: Engine) -> Iterator[Connection]:
    """A session that has read so often that its plans are kept."""
    engine = create_engine(filled.url)
    with engine.connect() as conn:
        for _ in range(12):
            store.read_log(conn, limit=5)
        yield conn
    engine.dispose()


def whole_reads(conn: Connection) -> dict[str, int]:
    """Return how often this transaction has read all of a table."""
    return {
        table: int(
            conn.scalar(
                text("SELECT pg_stat_get_xact_numscans(CAST(:t AS regclass))"),
                {"t": f"datapatterns.{table}"},
            )
            or 0
        )
        for table in TABLES
    }


@pytest.mark.parametrize(
    "wanted",
    [
        LogFilter(),
        LogFilter(event_types=["type.3"]),
        LogFilter(categories=["c1"]),
        LogFilter(categories=["no_such"], tenant="none"),
        LogFilter(tags=["big"], tenant=""),
        LogFilter(tags=["big", "rare"], tenant=""),
        LogFilter(tags=["rare"], event_types=["type.3"], tenant=""),
        LogFilter(tags=["rare"]),
        LogFilter(since=datetime(2100, 1, 1, tzinfo=UTC)),
        LogFilter(until=datetime(2000, 1, 1, tzinfo=UTC), tags=["big"], tenant=""),
    ],
    ids=str,
)
@pytest.mark.parametrize("after", [0, 35_900])
def test_no_page_reads_a_whole_table(warm: Connection, wanted: LogFilter, after: int) -> None:
    page = store.read_log(warm, Position(after), matching=wanted, limit=10)
    for _ in range(12):  # custom plans first, then the one that is kept
        page = store.read_log(warm, Position(after), matching=wanted, limit=10)
    store.read_log(warm, page, matching=wanted, limit=10)

    assert whole_reads(warm) == dict.fromkeys(TABLES, 0)


def test_no_page_of_a_stream_reads_a_whole_table(warm: Connection) -> None:
    for _ in range(12):
        store.read_stream(warm, StreamId("c1", "1"), limit=3, backwards=True, to_version=9_000)

    assert whole_reads(warm) == dict.fromkeys(TABLES, 0)


@pytest.mark.parametrize("to", [100, 35_900])
def test_no_witness_of_the_log_reads_a_whole_table(warm: Connection, to: int) -> None:
    for _ in range(12):
        read_witnesses(warm, store.schema, Position(to - 50), Position(to))
    begin, end = read_witnesses(warm, store.schema, Position(to - 50), Position(to))

    assert len(begin.events) == len(end.events) == WITNESS_EVENTS
    assert read_witness(warm, store.schema, Position(to)) == end
    assert whole_reads(warm) == dict.fromkeys(TABLES, 0)


def test_a_scan_would_be_counted(warm: Connection) -> None:
    """The control."""
    warm.scalar(text("SELECT count(*) FROM datapatterns.event WHERE tags IS NOT NULL"))

    assert whole_reads(warm)["event"] == 1


def test_a_plan_from_when_the_log_was_small_is_not_kept(engine: Engine) -> None:
    wanted = LogFilter(event_types=["type.3"])
    with engine.connect() as conn:
        for _ in range(12):
            store.read_log(conn, matching=wanted)
        conn.rollback()
        with engine.begin() as other:
            other.execute(text("ALTER TABLE datapatterns.event SET (autovacuum_enabled = off)"))
        for _ in range(12):
            store.read_log(conn, matching=wanted)
        conn.rollback()
        with engine.begin() as other:
            other.execute(text(FILL))

        store.read_log(conn, Position(EVENTS - 100), matching=wanted)

        assert whole_reads(conn)["event"] == 0
