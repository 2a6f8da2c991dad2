"""Partitions are made ahead of the events, and dropped when they are empty."""

import pytest
from sqlalchemy import Engine, text

from datapatterns.errors import MigrationBlockedError
from datapatterns.event_sourcing import Archive, StreamId
from datapatterns.sql.schema_comparison import schema_differences
from tests.fixtures.partitions import fill, partitioning, partitions_themselves, spread, store

archive = Archive(store)

pytestmark = partitions_themselves


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
