"""Events move out of the way and back, and none is lost or seen twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from threading import Event as Flag

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from datapatterns.errors import (
    IsolationLevelError,
    PurgeRefusedError,
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    Expected,
    ImportedEvent,
    StreamId,
)
from datapatterns.testing import armed
from tests.fixtures.archives import CART, archive, exported, fill, happened, store, summary, where
from tests.fixtures.colours import Call

ENOUGH_SECONDS = 30


def test_a_stopped_stream_moves_away_step_by_step_and_comes_back(
    call: Call, engine: Engine
) -> None:
    fill(engine)
    before = call(store.read_log).events

    version = call(archive.stop, CART, expected_version=10)
    steps = [call(archive.move, CART, limit=4) for _ in range(4)]
    with engine.begin() as conn:
        moved = where(conn)
    with pytest.raises(StreamArchivedError):
        call(store.append, CART, happened(1), expected_version=ANY)
    back = [call(archive.restore, CART, limit=4) for _ in range(4)]
    with engine.begin() as conn:
        restored = where(conn)
    appended = call(store.append, CART, happened(1), expected_version=10)

    assert (version, steps, back) == (10, [4, 4, 2, 0], [False, False, True, True])
    assert moved == {"event": [], "archive": [*range(1, 11)], "all": [*range(1, 11)]}
    assert restored == {"event": [*range(1, 11)], "archive": [], "all": [*range(1, 11)]}
    assert appended.version == 11
    assert call(store.read_log).events[:10] == before


def test_a_stopped_stream_takes_no_import_either(call: Call, engine: Engine) -> None:
    fill(engine)
    call(archive.stop, CART)

    with pytest.raises(StreamArchivedError):
        call(store.import_events, [ImportedEvent(CART, happened(1)[0])], source="tills", chunk=1)


def test_a_stream_is_stopped_only_as_it_is_expected(conn: Connection) -> None:
    with pytest.raises(VersionConflictError) as missing:
        archive.stop(conn, CART, expected_version=EXISTS)
    store.append(conn, CART, happened(3), expected_version=ANY)
    with pytest.raises(VersionConflictError) as changed:
        archive.stop(conn, CART, expected_version=2)

    assert (missing.value.found, changed.value.found, changed.value.expected) == (0, 3, 2)
    assert [archive.stop(conn, CART), archive.stop(conn, CART)] == [3, 3]


def test_an_open_stream_and_one_that_is_not_there_have_nothing_to_move(conn: Connection) -> None:
    assert archive.move(conn, CART) == 0
    assert archive.restore(conn, CART) is False
    store.append(conn, CART, happened(3), expected_version=ANY)

    assert archive.move(conn, CART) == 0
    assert archive.restore(conn, CART) is True
    assert where(conn)["event"] == [1, 2, 3]


def test_a_compacted_stream_goes_on_while_its_past_moves(engine: Engine, call: Call) -> None:
    fill(engine)
    event = summary()
    appended = call(archive.compact, CART, event, expected_version=10)
    again = call(archive.compact, CART, event, expected_version=10)
    with pytest.raises(VersionConflictError):
        call(archive.compact, CART, summary(), expected_version=10)

    with engine.begin() as mover, engine.begin() as writer:
        assert archive.move(mover, CART, limit=3) == 3
        writer.execute(text("SET LOCAL lock_timeout = '2s'"))
        store.append(writer, CART, happened(1), expected_version=11)
    reported: list[tuple[StreamId, int]] = []
    moved = archive.move_all(
        engine, limit=3, progress=lambda stream, count: reported.append((stream, count))
    )

    with engine.begin() as conn:
        assert where(conn) == {
            "event": [11, 12],
            "archive": [*range(1, 11)],
            "all": [*range(1, 13)],
        }
        assert archive.pending(conn) == []
    assert (appended.version, again.version, again.repeated) == (11, 11, True)
    assert (moved, reported) == (7, [(CART, 3), (CART, 3), (CART, 1)])


@pytest.mark.parametrize("version", [0, -1, ANY, EXISTS])
def test_a_summary_of_nothing_is_refused(conn: Connection, version: int | Expected) -> None:
    with pytest.raises(ValueError, match="sums something up"):
        archive.compact(conn, CART, summary(), expected_version=version)  # type: ignore[arg-type]  # it may be wrong


def test_a_mover_that_dies_leaves_what_the_next_one_finishes(engine: Engine) -> None:
    fill(engine)
    with engine.begin() as conn:
        archive.stop(conn, CART)
        archive.move(conn, CART, limit=3)

    def die() -> None:
        raise KeyboardInterrupt

    with armed("archive.moved", die), pytest.raises(KeyboardInterrupt):
        archive.move_all(engine, limit=3)
    with engine.begin() as conn:
        left = where(conn)
    rest = archive.move_all(engine, limit=3)

    assert (left["event"], rest) == ([*range(4, 11)], 7)


def test_movers_and_restorers_take_turns(engine: Engine) -> None:
    fill(engine, 200)
    with engine.begin() as conn:
        archive.stop(conn, CART)
    barrier = Barrier(4)

    def run(way: int) -> None:
        own = create_engine(engine.url)
        barrier.wait(ENOUGH_SECONDS)
        for _ in range(8):
            with own.begin() as conn:
                if way % 2:
                    archive.move(conn, CART, limit=40)
                else:
                    archive.restore(conn, CART, limit=30)
                    archive.stop(conn, CART)
        own.dispose()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, way) for way in range(4)]:
            future.result(ENOUGH_SECONDS)

    with engine.begin() as conn:
        assert where(conn)["all"] == [*range(1, 201)]


@contextmanager
def reading(engine: Engine, isolation: str) -> Iterator[list[set[tuple[int, ...]]]]:
    """Read all events over and over meanwhile; give what was seen."""
    seen: list[set[tuple[int, ...]]] = []
    stop = Flag()

    def run() -> None:
        own = create_engine(engine.url, isolation_level=isolation)
        while not stop.is_set():
            with own.begin() as conn:
                for _ in range(3):
                    rows = text("SELECT version FROM datapatterns.event_all ORDER BY 1")
                    seen.append({tuple(conn.scalars(rows))})
        own.dispose()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        try:
            yield seen
        finally:
            stop.set()
            future.result(ENOUGH_SECONDS)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_readers_see_each_event_once_while_it_moves(engine: Engine, isolation: str) -> None:
    fill(engine, 60)
    with reading(engine, isolation) as seen:
        for _ in range(5):
            with engine.begin() as conn:
                archive.stop(conn, CART)
            archive.move_all(engine, limit=7)
            for _ in range(7):
                with engine.begin() as conn:
                    archive.restore(conn, CART, limit=9)

    assert len(seen) > 3
    assert {rows for found in seen for rows in found} == {tuple(range(1, 61))}


def test_an_export_holds_what_was_asked_for_or_is_refused(engine: Engine) -> None:
    with engine.begin() as conn, pytest.raises(PurgeRefusedError, match="no events"):
        exported(conn, 1)
    fill(engine, 10)
    with engine.begin() as conn:
        archive.compact(conn, CART, summary(), expected_version=10)
        archive.move(conn, CART, limit=4)
        with pytest.raises(PurgeRefusedError, match="version 5"):
            exported(conn, 5)
        export, lines = exported(conn, 4)
    assert (export.events, len(lines)) == (4, 4)


def test_moves_need_to_see_what_others_did_while_they_waited(engine: Engine) -> None:
    fill(engine)
    old = engine.execution_options(isolation_level="REPEATABLE READ")
    single = engine.execution_options(isolation_level="AUTOCOMMIT")
    for bad in (old, single):
        for operation in (archive.move, archive.restore):
            with bad.connect() as conn, pytest.raises(IsolationLevelError):
                operation(conn, CART)
    with engine.begin() as conn, pytest.raises(ValueError, match="1 to"):
        archive.move(conn, CART, limit=0)
