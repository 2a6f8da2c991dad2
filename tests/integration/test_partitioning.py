"""The table of events becomes partitions and one table again, and nobody notices."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MigrationBlockedError
from datapatterns.event_sourcing import (
    ANY,
    START,
    Archive,
    EventStore,
    HashChain,
    NewEvent,
    Partition,
    Partitioning,
    StreamId,
)
from datapatterns.sql.migrating import downgrade, upgrade
from datapatterns.sql.schema_comparison import schema_differences
from datapatterns.testing import wait_until

store = EventStore()
archive = Archive(store)
partitioning = Partitioning(store)
ENOUGH_SECONDS = 60

pytestmark = pytest.mark.skipif(
    "PARTITIONED_EVENTS" in os.environ, reason="these tests partition the events themselves"
)


def fill(engine: Engine, count: int, key: str = "7") -> None:
    with engine.begin() as conn:
        events = [NewEvent("thing.happened", {"n": n}) for n in range(count)]
        store.append(conn, StreamId("s", key), events, expected_version=ANY)


def spread(conn: Connection) -> dict[str, int]:
    """Return how many events are in each partition that has any."""
    rows = conn.execute(
        text(
            "SELECT c.relname, count(*) FROM datapatterns.event AS e JOIN pg_class AS c"
            " ON c.oid = e.tableoid GROUP BY 1 ORDER BY min(position)"
        )
    )
    return {str(name): int(count) for name, count in rows}


@pytest.fixture
def parted(engine: Engine) -> Engine:
    """Events up to position 19 in the first partition, 20 to 29 in the next, and the rest."""
    fill(engine, 5)
    assert partitioning.partition(engine, size=10)
    return engine


def test_events_go_where_they_belong_and_are_read_in_order(parted: Engine) -> None:
    fill(parted, 40)
    with parted.begin() as conn:
        assert spread(conn) == {"event_p20": 19, "event_p30": 10, "event_rest": 16}
        assert partitioning.partitions(conn) == [
            Partition("event_p20", None, 19, is_rest=False),
            Partition("event_p30", 20, 29, is_rest=False),
            Partition("event_rest", None, None, is_rest=True),
        ]
        page = store.read_log(conn, limit=100)
        stream = store.read_stream(conn, StreamId("s", "7"), limit=100)
    assert [event.position for event in page.events] == list(range(1, 46))
    assert page.events == stream
    assert not partitioning.partition(parted, size=10)


def test_nothing_differs_from_what_the_migrations_make(parted: Engine) -> None:
    with parted.connect() as conn:
        assert schema_differences(conn) == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DROP TRIGGER raise_fence ON datapatterns.event_p30", "partition event_p30 without"),
        ("DROP TRIGGER moves_only ON datapatterns.event_rest", "partition event_rest without"),
        (
            "ALTER TABLE datapatterns.event_p20 DISABLE TRIGGER append_only",
            "event_p20 without trigger append_only",
        ),
        (
            "ALTER TABLE datapatterns.event_p30 DROP CONSTRAINT uq_event_p30_stream_id_version",
            "uq_event_stream_id_version",
        ),
        ("ALTER TABLE datapatterns.event ADD COLUMN more int", "event.more"),
    ],
)
def test_a_partition_that_lacks_a_guard_is_drift(parted: Engine, change: str, told: str) -> None:
    with parted.connect() as conn:
        conn.execute(text(change))
        assert told in " ".join(schema_differences(conn))


def test_appends_and_readers_go_on_while_the_table_changes(engine: Engine) -> None:
    fill(engine, 500)
    done, seen, checkpoint = Flag(), [], START

    def write(number: int) -> int:
        own, count = create_engine(engine.url), 0
        while not done.is_set():
            fill(own, 3, key=str(number))
            count += 3
        own.dispose()
        return count

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        assert partitioning.partition(engine, size=5_000, lock_seconds=0.05, attempts=200)
        with engine.begin() as conn:
            first = spread(conn)
        wait_until(lambda: _drawn(engine) > 900, deadline_seconds=ENOUGH_SECONDS)
        done.set()
        written = sum(writer.result(ENOUGH_SECONDS) for writer in writers)
    while True:
        with engine.begin() as conn:
            page = store.read_log(conn, checkpoint, limit=1_000)
        seen += page.events
        checkpoint = page.checkpoint
        if page.caught_up:
            break

    assert list(first) == ["event_p10000"]
    assert len(seen) == 500 + written
    with engine.begin() as conn:
        assert partitioning.duplicates(conn) == []


def _drawn(engine: Engine) -> int:
    with engine.begin() as conn:
        return store.high_water_mark(conn)


INSERT = (
    "INSERT INTO datapatterns.event_p30 (stream_id, version, at, event_id, type_id, data)"
    " VALUES (99, 1, now(), gen_random_uuid(), 1, '{}')"
)


def test_what_is_written_into_a_partition_raises_the_fence_too(parted: Engine) -> None:
    fill(parted, 16)

    def passed() -> bool:
        """Tell whether a reader passes a position that a direct insert holds."""
        with parted.connect() as late, parted.begin() as conn:
            late.execute(text(INSERT))
            mark = store.high_water_mark(conn)
            drawn = conn.scalar(text("SELECT last_value FROM datapatterns.event_position"))
            return mark >= int(drawn or 0)

    fenced = passed()
    with parted.begin() as conn:
        conn.execute(text("ALTER TABLE datapatterns.event_p30 DISABLE TRIGGER raise_fence"))

    assert not fenced
    assert passed()  # the control: without the partition's own trigger nothing holds it back


@pytest.mark.parametrize("table", ["event", "event_p20", "event_rest"])
@pytest.mark.parametrize("change", ["UPDATE {} SET version = 9", "DELETE FROM {}", "TRUNCATE {}"])
def test_a_partition_is_append_only_by_itself(parted: Engine, table: str, change: str) -> None:
    fill(parted, 40)
    with parted.begin() as conn, pytest.raises(DBAPIError, match="append-only"):
        conn.exec_driver_sql(change.format(f"datapatterns.{table}"))


def test_partitions_are_made_ahead_and_no_more_than_needed(parted: Engine) -> None:
    def extend(ahead: int) -> int:
        with parted.begin() as conn:
            return partitioning.extend(conn, ahead=ahead)

    first = [extend(2), extend(2), extend(4)]
    fill(parted, 30)
    second = extend(2)

    with parted.begin() as conn:
        names = [part.name for part in partitioning.partitions(conn)]
        used = spread(conn)
    assert (first, second) == ([0, 0, 2], 1)
    assert names[:3] == ["event_p20", "event_p30", "event_p40"]
    assert "event_rest" not in used


def test_where_partitions_come_too_late_appends_go_on(parted: Engine) -> None:
    fill(parted, 40)
    with parted.begin() as conn:
        made = partitioning.extend(conn, ahead=1)
        again = partitioning.extend(conn, ahead=1)
    fill(parted, 10)

    with parted.begin() as conn:
        used = spread(conn)
        events = store.read_log(conn, limit=100).events
        assert schema_differences(conn) == ()
        conn.rollback()
    assert (made, again) == (1, 0)
    assert used == {"event_p20": 19, "event_p30": 10, "event_rest": 20, "event_p60": 6}
    assert [event.position for event in events] == list(range(1, 56))


def test_the_newest_partition_stays_so_that_there_can_be_further_ones(parted: Engine) -> None:
    fill(parted, 40)
    with parted.begin() as conn:
        archive.stop(conn, StreamId("s", "7"))
    archive.move_all(parted)
    with parted.begin() as conn:
        dropped = partitioning.drop_empty(conn)
        made = partitioning.extend(conn)
        names = [part.name for part in partitioning.partitions(conn)]

    assert (dropped, made) == (1, 2)
    assert names == ["event_p30", "event_p60", "event_p70", "event_rest"]


@pytest.mark.parametrize("step", ["extend", "drop_empty", "undo"])
def test_behind_an_open_reader_nobody_has_to_wait_for_long(parted: Engine, step: str) -> None:
    fill(parted, 40)  # up to the rest, or a reader does not need it
    with parted.connect() as reader:
        store.read_log(reader)
        with parted.begin() as conn:
            conn.execute(text("SET LOCAL lock_timeout = '7s'"))
            with pytest.raises(MigrationBlockedError), conn.begin_nested():
                getattr(partitioning, step)(conn, lock_seconds=0.01)
            assert conn.scalar(text("SHOW lock_timeout")) == "7s"
            store.read_log(conn)
            fill(parted, 1)
    with parted.begin() as conn:
        conn.execute(text("SET LOCAL lock_timeout = '7s'"))
        getattr(partitioning, step)(conn, lock_seconds=0.01)
        assert conn.scalar(text("SHOW lock_timeout")) == "7s"


def test_an_empty_old_partition_is_dropped_and_its_events_can_come_back(parted: Engine) -> None:
    fill(parted, 24)
    fill(parted, 5, key="other")
    with parted.begin() as conn:
        partitioning.extend(conn)
        untouched = partitioning.drop_empty(conn)
        archive.stop(conn, StreamId("s", "7"))
    archive.move_all(parted)
    with parted.begin() as conn:
        dropped = [partitioning.drop_empty(conn) for _ in range(2)]
        left = [part.name for part in partitioning.partitions(conn)]
        while not archive.restore(conn, StreamId("s", "7"), limit=10):
            pass
        used = spread(conn)
        stream = store.read_stream(conn, StreamId("s", "7"), limit=100)

    assert (untouched, dropped) == (0, [2, 0])
    assert left == ["event_p50", "event_p60", "event_rest"]
    assert used == {"event_rest": 34}
    assert [event.version for event in stream] == list(range(1, 30))
    with parted.begin() as conn:
        partitioning.undo(conn)
        assert len(store.read_log(conn, limit=100).events) == 34
    with parted.connect() as conn:
        assert schema_differences(conn) == ()


def test_there_is_a_way_back(parted: Engine) -> None:
    fill(parted, 40)
    with parted.begin() as conn:
        before = store.read_log(conn, limit=100).events
        HashChain(store).seal(conn)
        partitioning.undo(conn)
        partitioning.undo(conn)
    fill(parted, 1)

    with parted.connect() as conn:
        assert partitioning.partitions(conn) == []
        assert store.read_log(conn, limit=45).events == before
        assert HashChain(store).verify(conn).intact
        assert schema_differences(conn) == ()


def test_migrations_go_down_and_up_again(parted: Engine) -> None:
    fill(parted, 40)
    with parted.begin() as conn:
        downgrade(conn, "dp0011")
    with parted.begin() as conn:
        upgrade(conn)
        assert len(store.read_log(conn, limit=100).events) == 45
    with parted.connect() as conn:
        assert schema_differences(conn) == ()


def test_rights_stay_with_the_table_and_leave_the_partitions(engine: Engine) -> None:
    rights = text(
        "SELECT c.relname, a.privilege_type, a.is_grantable FROM pg_class AS c,"
        " aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee"
        " WHERE r.rolname = 'pg_monitor' AND c.relnamespace = 'datapatterns'::regnamespace"
    )
    column = text("SELECT has_column_privilege('pg_monitor', 'datapatterns.event', 'at', 'UPDATE')")
    with engine.begin() as conn:
        conn.execute(
            text(
                "GRANT SELECT ON datapatterns.event TO pg_monitor WITH GRANT OPTION;"
                " GRANT UPDATE (at) ON datapatterns.event TO pg_monitor"
            )
        )
    partitioning.partition(engine, size=10)
    with engine.begin() as conn:
        parted = conn.execute(rights).all(), conn.scalar(column)
        partitioning.undo(conn)
        undone = conn.execute(rights).all(), conn.scalar(column)

    assert parted == undone == ([("event", "SELECT", True)], True)


TRIGGER = (
    "CREATE TRIGGER mine BEFORE INSERT ON datapatterns.event EXECUTE FUNCTION"
    " datapatterns.raise_fence_before_insert()"
)


@pytest.mark.parametrize(
    ("obstacle", "told"),
    [
        ("CREATE VIEW mine AS SELECT * FROM datapatterns.event", "view public.mine reads event"),
        ("CREATE PUBLICATION mine FOR TABLE datapatterns.event", "publication"),
        ("CREATE POLICY mine ON datapatterns.event", "policy"),
        (
            "CREATE TABLE mine (p bigint REFERENCES datapatterns.event (position))",
            "foreign key",
        ),
        (TRIGGER, "trigger"),
    ],
)
def test_what_would_stay_with_one_partition_is_in_the_way(
    engine: Engine, obstacle: str, told: str
) -> None:
    with engine.begin() as conn:
        conn.execute(text(obstacle))

    with pytest.raises(DBAPIError, match=told):
        partitioning.partition(engine, size=10)
    with engine.begin() as conn:
        assert partitioning.partitions(conn) == []
        partitioning.undo(conn)


def test_a_session_that_holds_the_table_lets_it_be_tried_again(engine: Engine) -> None:
    fill(engine, 5)
    with engine.connect() as holder:
        store.read_log(holder)
        with pytest.raises(MigrationBlockedError, match="events"):
            partitioning.partition(engine, size=10, attempts=2, lock_seconds=0.02)
    fill(engine, 1)

    assert partitioning.partition(engine, size=10, attempts=2, lock_seconds=0.02)
    with engine.begin() as conn:
        assert len(store.read_log(conn).events) == 6


def test_a_version_that_occurs_twice_is_found(parted: Engine) -> None:
    fill(parted, 40)
    with parted.begin() as conn:
        none = partitioning.duplicates(conn)
        conn.execute(
            text(
                "INSERT INTO datapatterns.event (stream_id, version, at, event_id, type_id, data)"
                " VALUES (1, 3, now(), gen_random_uuid(), 1, '{}')"
            )
        )
        assert (none, partitioning.duplicates(conn)) == ([], [(1, 3)])


@pytest.mark.parametrize("size", [0, -1, 2**41])
def test_sizes_that_mean_nothing_are_refused(engine: Engine, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        partitioning.partition(engine, size=size)


def test_default_privileges_give_nobody_a_right_on_events(engine: Engine) -> None:
    rights = text(
        "SELECT count(*) FROM pg_class AS c, aclexplode(c.relacl) AS a"
        " WHERE c.relname LIKE 'event%' AND c.relnamespace = 'datapatterns'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND a.grantee = 'pg_monitor'::regrole"
    )
    with engine.begin() as conn:
        conn.execute(
            text(
                "ALTER DEFAULT PRIVILEGES IN SCHEMA datapatterns"
                " GRANT INSERT, UPDATE ON TABLES TO pg_monitor"
            )
        )
    partitioning.partition(engine, size=10)
    with engine.begin() as conn:
        assert conn.scalar(rights) == 0
        partitioning.undo(conn)
        assert conn.scalar(rights) == 0
