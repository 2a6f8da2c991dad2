"""The table of events becomes partitions and one table again, and nobody notices."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MigrationBlockedError
from datapatterns.event_sourcing import (
    START,
    Archive,
    HashChain,
    Partition,
    StreamId,
)
from datapatterns.sql.migrating import downgrade, upgrade
from datapatterns.sql.schema_comparison import schema_differences
from datapatterns.testing import wait_until
from tests.fixtures.partitions import fill, partitioning, partitions_themselves, spread, store

archive = Archive(store)
ENOUGH_SECONDS = 60

pytestmark = partitions_themselves


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


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_what_gets_in_the_way_in_the_last_moment_is_seen_too(
    engine: Engine, isolation: str
) -> None:
    own = create_engine(engine.url, isolation_level=isolation)

    def get_in_the_way(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "partition_events" in statement:
            with engine.begin() as conn:
                conn.execute(text("CREATE POLICY mine ON datapatterns.event"))

    event.listen(own, "before_cursor_execute", get_in_the_way)

    with pytest.raises(DBAPIError, match="policy"):
        partitioning.partition(own, size=10)
    own.dispose()


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
