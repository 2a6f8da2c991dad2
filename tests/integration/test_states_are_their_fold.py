"""A state that is loaded, or stored, is what its events make of it."""

from dataclasses import dataclass

import pytest
from sqlalchemy import Connection

from datapatterns.errors import AggregateError
from datapatterns.event_sourcing import (
    NEW_STREAM,
    Aggregate,
    Archive,
    EventStore,
    EventTypes,
    StreamId,
    applies,
    every,
)

types = EventTypes()
store = EventStore(types=types)


@types.event("counter.counted")
@dataclass(frozen=True)
class Counted:
    by: int


class Counter(Aggregate, category="counter", snapshot=every(1)):
    total = 0

    @applies
    def _(self, e: Counted) -> None:
        self.total += e.by
        if e.by == 13:
            raise RuntimeError("half done")


class Doubler(Aggregate, category="counter"):
    total = 0

    @applies
    def _(self, e: Counted) -> None:
        self.total += e.by
        if e.by == 1:
            self.emit(Counted(2))


def counted(conn: Connection, *numbers: int) -> None:
    events = [Counted(number) for number in numbers]
    store.append(conn, StreamId("counter", "7"), events, expected_version=NEW_STREAM)


def test_a_handler_that_emits_is_refused_in_a_load_too(conn: Connection) -> None:
    counted(conn, 1, 2)

    with pytest.raises(AggregateError, match="emits Counted while it applies an event"):
        store.load(conn, Doubler, "7")


def test_a_state_that_a_handler_left_half_changed_is_stored_nowhere(conn: Connection) -> None:
    counted(conn, 1)
    counter = store.load(conn, Counter, "7")
    with pytest.raises(RuntimeError):
        counter.emit(Counted(13))

    with pytest.raises(AggregateError, match="half changed"):
        store.save_snapshot(conn, counter)
    counter.emit(Counted(1))
    with pytest.raises(AggregateError, match="half changed"):
        store.save(conn, counter)
    assert store.load(conn, Counter, "7").total == 1


def test_a_stream_in_the_archive_gets_snapshots(conn: Connection) -> None:
    counted(conn, 1, 2)
    archive, stream = Archive(store), StreamId("counter", "7")
    archive.stop(conn, stream, expected_version=2)
    archive.move(conn, stream)
    loaded = store.load(conn, Counter, "7")

    assert store.save_snapshot(conn, loaded)
    again = store.load(conn, Counter, "7")
    assert (again.version, again.total) == (2, 3)
    assert not store.save_snapshot(conn, again)
