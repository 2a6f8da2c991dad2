"""Events move out of the way and back, and none is lost or seen twice."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from threading import Event as Flag

import pytest
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    IsolationLevelError,
    PurgeRefusedError,
    StreamArchivedError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    EXISTS,
    Archive,
    ArchiveExport,
    EventStore,
    Expected,
    HashChain,
    ImportedEvent,
    NewEvent,
    StreamId,
)
from datapatterns.testing import armed
from tests.fixtures.colours import Call

store = EventStore()
archive = Archive(store)
chain = HashChain(store)
CART = StreamId("cart", "7")
ENOUGH_SECONDS = 30


def happened(count: int, *, tags: tuple[str, ...] = ()) -> list[NewEvent]:
    return [NewEvent("thing.happened", {"n": n}, tags=tags) for n in range(count)]


def summary() -> NewEvent:
    return NewEvent("thing.summed", {"n": 0})


def fill(engine: Engine, count: int = 10, stream: StreamId = CART) -> None:
    with engine.begin() as conn:
        store.append(conn, stream, happened(count), expected_version=ANY)


def where(conn: Connection) -> dict[str, list[int]]:
    """Return the versions that each table holds, whatever their stream."""
    return {
        name: list(conn.scalars(statement))
        for name, statement in {
            "event": text("SELECT version FROM datapatterns.event ORDER BY 1"),
            "archive": text("SELECT version FROM datapatterns.event_archive ORDER BY 1"),
            "all": text("SELECT version FROM datapatterns.event_all ORDER BY 1"),
        }.items()
    }


def exported(conn: Connection, through_version: int) -> tuple[ArchiveExport, list[str]]:
    lines: list[str] = []
    return archive.export(conn, CART, through_version=through_version, write=lines.append), lines


def compacted(engine: Engine, count: int = 10) -> None:
    """Leave a stream of a summary, and ``count`` archived events before it."""
    fill(engine, count)
    with engine.begin() as conn:
        archive.compact(conn, CART, summary(), expected_version=count)
    assert archive.move_all(engine, limit=4) == count


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


COLUMNS = "position, stream_id, version, at, event_id, type_id, data, meta, payload, codec, tags"
MOVE = f"""
WITH gone AS (DELETE FROM datapatterns.event RETURNING *)
INSERT INTO datapatterns.event_archive ({COLUMNS}) SELECT {COLUMNS} FROM gone
"""  # noqa: S608 -- constants
LOSSES = {
    "a plain delete": "DELETE FROM datapatterns.event WHERE version = 2",
    "an update": "UPDATE datapatterns.event SET data = '{}'",
    "a truncate": "TRUNCATE datapatterns.event",
    "a move of less": f"{MOVE} WHERE version > 1",
    "a move with a change": MOVE.replace("SELECT position", "SELECT position + 9"),
    "a move with other bytes": MOVE.replace(
        ", data, meta, payload, codec, tags FROM",
        ", data::jsonb::json, meta, payload, codec, tags FROM",
    ),
    "a copy": MOVE.replace(
        "DELETE FROM datapatterns.event RETURNING *", "SELECT * FROM datapatterns.event"
    ),
}
LOSSES_OF_ARCHIVE = {
    "a plain delete": "DELETE FROM datapatterns.event_archive WHERE version = 2",
    "an update": "UPDATE datapatterns.event_archive SET data = '{}'",
    "a truncate": "TRUNCATE datapatterns.event_archive",
    "a tombstone for what loads need": "WITH p AS (INSERT INTO datapatterns.event_purge (stream_id,"
    " first_version, last_version, events, digest, reason) VALUES (1, 1, 1, 1, sha256(''), 'x')"
    " RETURNING purge_id) INSERT INTO datapatterns.event_tombstone SELECT position, stream_id,"
    " version, purge_id, sha256('') FROM datapatterns.event_archive, p;"
    " DELETE FROM datapatterns.event_archive",
}


def refuses(engine: Engine, loss: str) -> None:
    with engine.connect() as conn:
        with pytest.raises(DBAPIError, match=r"append-only|in one place"):
            conn.exec_driver_sql(loss)
        conn.rollback()
        assert where(conn)["all"] == [1, 2, 3]
        conn.rollback()
        # The control: with the triggers off it goes through.
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        before = conn.execute(text("SELECT CAST(e AS text) FROM datapatterns.event_all AS e")).all()
        conn.exec_driver_sql(loss)
        after = conn.execute(text("SELECT CAST(e AS text) FROM datapatterns.event_all AS e")).all()
        conn.rollback()
    assert sorted(map(str, before)) != sorted(map(str, after))


@pytest.mark.parametrize("loss", LOSSES)
def test_not_even_the_owner_loses_an_event_by_mistake(engine: Engine, loss: str) -> None:
    fill(engine, 3)

    refuses(engine, LOSSES[loss])


@pytest.mark.parametrize("loss", LOSSES_OF_ARCHIVE)
def test_nor_an_archived_one(engine: Engine, loss: str) -> None:
    fill(engine, 3)
    with engine.begin() as conn:
        archive.stop(conn, CART)
    archive.move_all(engine)

    refuses(engine, LOSSES_OF_ARCHIVE[loss])


def test_a_purge_leaves_word_of_what_there_was(engine: Engine, call: Call) -> None:
    fill(engine, 3)
    with engine.begin() as conn:
        store.append(conn, CART, happened(2, tags=("a", "b")), expected_version=3)
        archive.compact(conn, CART, summary(), expected_version=5)
    archive.move_all(engine)
    chain.seal_all(engine, limit=2)
    lines: list[str] = []
    export = call(archive.export, CART, through_version=4, write=lines.append)

    removed = call(archive.purge, CART, export, reason="contract ended")

    with engine.begin() as conn:
        assert where(conn) == {"event": [6], "archive": [5], "all": [5, 6]}
        report = chain.verify(conn)
        purge = conn.execute(text("SELECT * FROM datapatterns.event_purge")).one()
        tags = conn.execute(text("SELECT tag, position FROM datapatterns.event_tag ORDER BY 1"))
        assert tags.all() == [("a", 5), ("b", 5)]
    assert (removed, len(lines)) == (4, 4)
    assert hashlib.sha256("".join(lines).encode()).digest() == export.digest == purge.digest
    assert (purge.first_version, purge.last_version, purge.events) == (1, 4, 4)
    assert purge.reason == "contract ended"
    assert (report.intact, report.events, report.purged) == (True, 6, 4)


def test_a_purge_in_steps(engine: Engine) -> None:
    compacted(engine)
    for through in (3, 4, 10):
        with engine.begin() as conn:
            archive.purge(conn, CART, exported(conn, through)[0], reason="old")

    with engine.begin() as conn:
        ranges = conn.execute(
            text("SELECT first_version, last_version FROM datapatterns.event_purge ORDER BY 1")
        ).all()
        chain.seal(conn)
        report = chain.verify(conn)
    assert ranges == [(1, 3), (4, 4), (5, 10)]
    assert (report.events, report.purged, report.intact) == (11, 10, True)


def test_a_purged_event_that_was_changed_before_is_found_by_its_tombstone(engine: Engine) -> None:
    compacted(engine)
    chain.seal_all(engine)
    with engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("UPDATE datapatterns.event_archive SET data = '{}' WHERE version = 2"))
    with engine.begin() as conn:
        archive.purge(conn, CART, exported(conn, 10)[0], reason="old")
        assert not chain.verify(conn).intact


SHARD = "INSERT INTO datapatterns.projection_shard (name, version, position) VALUES ('sales', 2, P)"


def test_what_is_needed_is_not_purged(engine: Engine) -> None:
    compacted(engine)
    with engine.begin() as conn:
        whole, _ = exported(conn, 10)
    refused: dict[str, str] = {}

    def attempt(name: str, export: ArchiveExport = whole, *changes: str) -> None:
        with engine.begin() as conn:
            for change in changes:
                conn.execute(text(change))
            with pytest.raises(PurgeRefusedError) as error:
                archive.purge(conn, CART, export, reason="old")
            refused[name] = error.value.reason
            conn.rollback()

    attempt("begin at", whole, "UPDATE datapatterns.stream SET first_version = 10")
    attempt("not hold", ArchiveExport(1, 10, 10, bytes(32)))
    attempt("not hold ", ArchiveExport(1, 10, 9, whole.digest))
    attempt(
        "seal first",
        whole,
        "INSERT INTO datapatterns.event_seal VALUES (1, 0, 9, 9, sha256(''))",
    )
    attempt(
        "sales version 2",
        whole,
        "INSERT INTO datapatterns.projection VALUES ('sales', 2, 'table', 'failed', 'x')",
        SHARD.replace("P", "9"),
    )
    for part, reason in refused.items():
        assert part.strip() in reason
    with engine.begin() as conn:  # the control: what has been read, sealed and exported, goes
        for change in (
            "INSERT INTO datapatterns.event_seal VALUES (1, 0, 10, 9, sha256(''))",
            "INSERT INTO datapatterns.projection VALUES ('sales', 2, 'table', 'live', 'x')",
            SHARD.replace("P", "10"),
        ):
            conn.execute(text(change))
        assert archive.purge(conn, CART, whole, reason="old") == 10


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
