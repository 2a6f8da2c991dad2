"""Nothing is lost by mistake, and a purge leaves word of what there was."""

import hashlib

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import PurgeRefusedError
from datapatterns.event_sourcing import ArchiveExport, HashChain
from tests.fixtures.archives import (
    CART,
    archive,
    compacted,
    exported,
    fill,
    happened,
    store,
    summary,
    where,
)
from tests.fixtures.colours import Call

chain = HashChain(store)


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
        "INSERT INTO datapatterns.projection (name, version, kind, status, targets)"
        " VALUES ('sales', 2, 'table', 'failed', '{x}')",
        SHARD.replace("P", "9"),
    )
    for part, reason in refused.items():
        assert part.strip() in reason
    with engine.begin() as conn:  # the control: what has been read, sealed and exported, goes
        for change in (
            "INSERT INTO datapatterns.event_seal VALUES (1, 0, 10, 9, sha256(''))",
            (
                "INSERT INTO datapatterns.projection (name, version, kind, status, targets)"
                " VALUES ('sales', 2, 'table', 'live', '{x}')"
            ),
            SHARD.replace("P", "10"),
        ):
            conn.execute(text(change))
        assert archive.purge(conn, CART, whole, reason="old") == 10
