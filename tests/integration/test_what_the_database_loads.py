"""The function that loads streams returns bounded pages, in order, each stream as far as asked."""

from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.event_sourcing import Archive, EventStore, StreamId
from tests.fixtures.tills import Scanned, Till, told, types

store = EventStore(types=types)
EVENTS = [Scanned(n, 10**n) for n in range(10)]
LOAD = text(
    "SELECT place, version FROM datapatterns.load_streams('', 'till', CAST(:keys AS text[]), '{}',"
    " 'Till', NULL, CAST(:versions AS bigint[]), NULL, :limit, false) WHERE kind > 0"
)


def fill(conn: Connection, *keys: str) -> None:
    for key in keys:
        store.append(conn, StreamId("till", key), EVENTS, expected_version=0)


def versions_of(conn: Connection, **asked: Any) -> list[tuple[int, int]]:  # noqa: ANN401 -- arrays
    rows = conn.execute(LOAD, {"versions": None, "limit": 100, **asked})
    return [(place, version) for place, version in rows]


def test_of_each_stream_only_a_page_comes(conn: Connection) -> None:
    fill(conn, "a", "b")

    page = versions_of(conn, keys=["a", "none", "b"], limit=3)

    assert page == [(1, 1), (1, 2), (1, 3), (3, 1), (3, 2), (3, 3)]


def test_each_stream_comes_as_far_as_its_own_version(conn: Connection) -> None:
    fill(conn, "a", "b", "c")

    assert versions_of(conn, keys=["a", "b", "c"], versions=[2, None, 1], limit=3) == [
        (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stream_that_is_just_being_moved_comes_in_its_order(engine: Engine, steps: int) -> None:
    """The first of its events are in the archive then, and the last are not."""
    stream = StreamId("till", "a")
    with engine.begin() as conn:
        fill(conn, "a")
        Archive(store).stop(conn, stream, expected_version=10)
    for _ in range(steps):
        with engine.begin() as conn:
            Archive(store).move(conn, stream, limit=3)

    with engine.begin() as conn:
        assert versions_of(conn, keys=["a"]) == [(1, version) for version in range(1, 11)]
        assert store.load(conn, Till, "a").total == sum(10**n for n in range(10))


@pytest.mark.parametrize("order", [1, -1])
def test_no_stream_begins_with_a_snapshot_that_another_one_is_asked_for(
    conn: Connection, order: int
) -> None:
    """Each has snapshots before and behind the version that it is asked for."""
    keys = ["a", "b", "c"]
    fill(conn, *keys)
    for key in keys:
        for version in (2, 5, 8):
            assert store.save_snapshot(conn, store.load(conn, Till, key, version=version))

    for versions in ([None, 6, 3], [9, 4, None], [1, 5, 7]):
        loaded = store.load_many(conn, Till, keys[::order], versions=versions[::order])

        for key, asked, till in zip(keys[::order], versions[::order], loaded, strict=True):
            replayed = Till(key)
            for event in EVENTS[:asked]:
                replayed.emit(event)
            assert told(till) == told(replayed)
