"""Which snapshots are listed and deleted, and whose stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, text

from datapatterns.event_sourcing import (
    Aggregate,
    Decider,
    EventStore,
    EventTypes,
    Snapshots,
    StreamId,
    applies,
    every,
)
from tests.fixtures.tills import AsDataclass, Named, Scanned, decide, evolve, types

store = EventStore(types=types)
OLD, NEW, OTHER = (
    Decider("till", AsDataclass(), decide, evolve, snapshot=every(1), snapshot_version=release)
    for release in (1, 2, 3)
)
KEPT = text("SELECT count(*) FROM datapatterns.snapshot")


def keep(
    conn: Connection, subjects: Sequence[Any], stream: StreamId, events: Sequence[object]
) -> None:
    """Append events, and store a snapshot by each of the subjects behind them."""
    version = len(store.read_stream(conn, stream))
    store.append(conn, stream, events, expected_version=version)
    for subject in subjects:
        state: Any = store.load(conn, subject, stream.key, tenant=stream.tenant)
        assert store.save_snapshot(conn, state)


def test_those_of_a_stream_are_listed_newest_first_with_their_sizes(conn: Connection) -> None:
    stream = StreamId("till", "7")
    keep(conn, [OLD], stream, [Named("é" * 100)])
    keep(conn, [NEW, OLD], stream, [Scanned(1, 5)])

    known = Snapshots(store, known=(NEW,)).list(conn, stream)
    assert [one.version for one in known] == [2, 2, 1]
    assert {one.fingerprint: one.current for one in known[:2]} == {
        one.fingerprint: one.fingerprint != known[2].fingerprint for one in known[:2]
    }
    assert sum(bool(one.current) for one in known) == 1
    assert [one.current for one in Snapshots(store).list(conn, stream)] == [None, None, None]
    [recorded, _] = store.read_stream(conn, stream)
    oldest = known[2]
    assert (oldest.position, oldest.at) == (recorded.position, recorded.recorded_at)
    assert oldest.size == conn.scalar(
        text("SELECT octet_length(state::text) FROM datapatterns.snapshot WHERE version = 1")
    )
    assert oldest.size > 200  # bytes, not letters
    assert [one.version for one in Snapshots(store).list(conn, stream, limit=1)] == [2]


def test_streams_that_share_a_key_keep_their_snapshots_apart(conn: Connection) -> None:
    other = Decider("shop", AsDataclass(), decide, evolve, snapshot=every(1))
    streams = [StreamId("till", "7"), StreamId("till", "7", "acme"), StreamId("till", "8")]
    for stream in streams:
        keep(conn, [OLD], stream, [Scanned(1, 5)])
    keep(conn, [other], StreamId("shop", "7"), [Scanned(1, 5)])
    snapshots = Snapshots(store)

    assert [len(snapshots.list(conn, stream)) for stream in streams] == [1, 1, 1]
    assert [one.aggregate for one in snapshots.list(conn, StreamId("shop", "7"))] == ["shop"]
    assert snapshots.drop(conn, streams[0]) == 1
    assert [len(snapshots.list(conn, stream)) for stream in streams] == [0, 1, 1]
    assert snapshots.drop(conn, StreamId("till", "none")) == 0
    assert conn.scalar(KEPT) == 3


def test_of_deciders_of_one_name_each_keeps_its_own(conn: Connection) -> None:
    stream = StreamId("till", "7")
    keep(conn, [OLD, NEW, OTHER], stream, [Scanned(1, 5)])
    snapshots = Snapshots(store, known=(OLD, NEW))

    assert snapshots.count_outdated(conn) == 1
    assert snapshots.drop_outdated(conn) == 1
    assert sorted(one.current or False for one in snapshots.list(conn, stream)) == [True, True]


def test_of_what_nobody_knows_nothing_is_outdated(conn: Connection) -> None:
    shop = Decider("shop", AsDataclass(), decide, evolve, snapshot=every(1))
    keep(conn, [OLD, NEW], StreamId("till", "7"), [Scanned(1, 5)])

    for known in ((), (shop,)):
        snapshots = Snapshots(store, known=known)
        assert snapshots.count_outdated(conn) == 0
        assert snapshots.drop_outdated(conn) == 0
    assert conn.scalar(KEPT) == 2


def test_an_aggregate_of_another_stores_events_is_passed_over(conn: Connection) -> None:
    """An application of two stores names all of its aggregates to both."""
    elsewhere = EventTypes()

    @elsewhere.event("counter.counted")
    @dataclass(frozen=True)
    class Counted:
        number: int

    class Counter(Aggregate, category="counter", snapshot=every(1)):
        total = 0

        @applies
        def _(self, e: Counted) -> None:
            self.total += e.number

    keep(conn, [OLD, NEW], StreamId("till", "7"), [Scanned(1, 5)])

    assert Snapshots(store, known=(Counter, NEW)).drop_outdated(conn) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_lets_nothing_through_is_refused(conn: Connection, limit: int) -> None:
    snapshots = Snapshots(store, known=(NEW,))

    with pytest.raises(ValueError, match="at least 1"):
        snapshots.list(conn, StreamId("till", "7"), limit=limit)
    with pytest.raises(ValueError, match="at least 1"):
        snapshots.drop_outdated(conn, limit=limit)


def test_a_limit_beyond_all_numbers_lets_everything_through(conn: Connection) -> None:
    stream = StreamId("till", "7")
    keep(conn, [OLD, NEW], stream, [Scanned(1, 5)])
    snapshots = Snapshots(store, known=(NEW,))

    assert len(snapshots.list(conn, stream, limit=10**30)) == 2
    assert snapshots.drop_outdated(conn, limit=10**30) == 1
