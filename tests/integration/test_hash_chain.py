"""Whatever is changed behind the library's back is found; what was not changed, is not."""

import base64
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, text

from datapatterns.errors import AnchorError, IsolationLevelError
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    FileAnchor,
    HashChain,
    NewEvent,
    StreamId,
)
from datapatterns.event_sourcing.keeping.chain import NOTHING_BEFORE, event_form
from datapatterns.event_sourcing.keeping.sealing import forms_statement
from tests.fixtures.colours import Call

store = EventStore()
chain = HashChain(store)
ENOUGH_SECONDS = 30
HOSTILE = 'a "quoted"\\ text,\twith\nlines, \x7f, \u2028 and ü, 🥚'
EVENTS = 24

RAW = text(
    "SELECT * FROM datapatterns.append_events('', 'odd', :key, NULL, NULL, 'odd.thing 3', NULL,"
    " CAST(gen_random_uuid() AS text), :data, :meta, :codec, :tags)"
)


def append(conn: Connection, key: str, *, count: int = 1) -> None:
    events = [NewEvent("thing.happened", {"n": n, "said": HOSTILE}) for n in range(count)]
    store.append(conn, StreamId("s", key), events, expected_version=ANY)


def fill(conn: Connection) -> None:
    """Append events with every column in use, and a gap between them."""
    for number in range(EVENTS // 4):
        key = f"k{number % 3}"
        append(conn, key, count=2)
        with conn.begin_nested() as undone:
            append(conn, key)
            undone.rollback()
        blob = base64.b64encode(bytes([number, 0, 255])).decode()
        odd: dict[str, Any] = {"key": key, "data": blob, "codec": 7, "meta": None, "tags": None}
        conn.execute(RAW, odd)
        conn.execute(
            RAW, odd | {"data": '{"a": 1.50}', "codec": 0, "meta": '{"by":"x"}', "tags": "b\ta"}
        )


@pytest.fixture(scope="module")
def sealed(module_engine: Engine) -> Engine:
    """A database with six segments of four events."""
    with module_engine.begin() as conn:
        fill(conn)
    assert chain.seal_all(module_engine, limit=4) == EVENTS // 4
    return module_engine


@pytest.fixture
def tampered(sealed: Engine) -> Iterator[Connection]:
    """A connection that no trigger hinders; what it does is undone."""
    with sealed.connect() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        yield conn
        conn.rollback()


CHANGES = {
    "position": "UPDATE datapatterns.event SET position = position + 1000 WHERE position = :p",
    "stream_id": "UPDATE datapatterns.event SET stream_id = stream_id % 6 + 1, version = 50"
    " WHERE position = :p",
    "version": "UPDATE datapatterns.event SET version = version + 50 WHERE position = :p",
    "at": "UPDATE datapatterns.event SET at = at + interval '1 us' WHERE position = :p",
    "at for ever": "UPDATE datapatterns.event SET at = 'infinity' WHERE position = :p",
    "event_id": "UPDATE datapatterns.event SET event_id = gen_random_uuid() WHERE position = :p",
    "type_id": "UPDATE datapatterns.event SET type_id = 3 - type_id WHERE position = :p",
    "data": "UPDATE datapatterns.event SET codec = 0, payload = NULL,"
    " data = CAST(coalesce(data::text, '{}') || ' ' AS json) WHERE position = :p",
    "meta": "UPDATE datapatterns.event SET meta = CASE WHEN meta IS NULL THEN '{}'::json END"
    " WHERE position = :p",
    "payload": "UPDATE datapatterns.event SET codec = 7, data = NULL,"
    " payload = coalesce(payload, '') || '\\x00' WHERE position = :p",
    "codec": "UPDATE datapatterns.event SET codec = 8, data = NULL,"
    " payload = coalesce(payload, '') WHERE position = :p",
    "tags": "UPDATE datapatterns.event SET tags = CASE WHEN tags IS NULL THEN '{}'"
    " ELSE ARRAY(SELECT unnest(tags) ORDER BY 1) END WHERE position = :p",
    "removed": "DELETE FROM datapatterns.event WHERE position = :p",
    "inserted": "INSERT INTO datapatterns.event (position, stream_id, version, at, event_id,"
    " type_id, data) SELECT (SELECT min(g) FROM generate_series(1, 30) g WHERE NOT EXISTS (SELECT"
    " FROM datapatterns.event WHERE position = g)), stream_id, 99, at, event_id, type_id, '{}'"
    " FROM datapatterns.event WHERE position = :p",
    "reordered": "UPDATE datapatterns.event SET position = CASE position WHEN :p THEN -1 ELSE :p"
    " END WHERE position IN (:p, (SELECT min(position) FROM datapatterns.event WHERE"
    " position > :p)); UPDATE datapatterns.event SET position = (SELECT max(position) FROM"
    " datapatterns.event) WHERE position = -1",
    "stream's key": "UPDATE datapatterns.stream SET key = key || 'x' WHERE id = (SELECT stream_id"
    " FROM datapatterns.event WHERE position = :p)",
    "stream's tenant": "UPDATE datapatterns.stream SET tenant = 'x' WHERE id = (SELECT stream_id"
    " FROM datapatterns.event WHERE position = :p)",
    "stream removed": "DELETE FROM datapatterns.stream WHERE id = (SELECT stream_id"
    " FROM datapatterns.event WHERE position = :p)",
    "type's name": "UPDATE datapatterns.event_type SET name = name || 'x' WHERE id = (SELECT"
    " type_id FROM datapatterns.event WHERE position = :p)",
    "type's shape": "UPDATE datapatterns.event_type SET schema_version = 9 WHERE id = (SELECT"
    " type_id FROM datapatterns.event WHERE position = :p)",
}


@given(change=st.sampled_from(sorted(set(CHANGES) - {"reordered"})), place=st.data())
def test_any_change_of_any_event_is_found(
    sealed: Engine, change: str, place: st.DataObject
) -> None:
    with sealed.connect() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        positions = list(conn.scalars(text("SELECT position FROM datapatterns.event ORDER BY 1")))
        position = place.draw(st.sampled_from(positions), label="position")
        before = chain.verify(conn)

        conn.execute(text(CHANGES[change]), {"p": position})
        report = chain.verify(conn)
        conn.rollback()

    assert before.intact
    assert before.events == EVENTS
    assert report.broken is not None
    if change not in {"inserted", *(name for name in CHANGES if " " in name)}:
        assert report.broken.after < position <= report.broken.last_position


def test_events_that_changed_places_are_found(tampered: Connection) -> None:
    swap = (
        "UPDATE datapatterns.event SET position = -:p WHERE position = :p",
        "UPDATE datapatterns.event SET position = :p WHERE position = :q",
        "UPDATE datapatterns.event SET position = :q WHERE position = -:p",
    )
    for statement in swap:
        conn_params = {"p": 1, "q": 2}
        tampered.execute(text(statement), conn_params)

    broken = chain.verify(tampered).broken

    assert broken is not None
    assert broken.segment == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE datapatterns.event_seal SET digest = sha256(digest) WHERE segment = 3",
        "UPDATE datapatterns.event_seal SET events = events + 1 WHERE segment = 3",
        "UPDATE datapatterns.event_seal SET last_position = last_position - 1 WHERE segment = 3",
        "UPDATE datapatterns.event_seal SET after_position = after_position + 1 WHERE segment = 3",
        "UPDATE datapatterns.event_seal SET segment = 30 WHERE segment = 3",
        "DELETE FROM datapatterns.event_seal WHERE segment = 3",
    ],
)
def test_a_seal_that_was_changed_or_removed_is_found(tampered: Connection, change: str) -> None:
    tampered.execute(text(change))

    report = chain.verify(tampered)

    assert report.broken is not None
    assert report.broken.segment == 3
    assert report.segments == 2


def test_the_form_can_be_made_again_from_an_export(sealed: Engine) -> None:
    with sealed.connect() as conn:
        rows = conn.execute(
            text(
                "SELECT e.position, e.stream_id, tenant, category, key, e.version, (extract(epoch"
                " FROM at) * 1000000)::bigint, event_id::text, type_id, name, schema_version,"
                " data::text, meta::text, codec, payload, tags FROM datapatterns.event e JOIN"
                " datapatterns.stream s ON s.id = stream_id JOIN datapatterns.event_type t"
                " ON t.id = type_id ORDER BY 1"
            )
        ).all()
        stored = conn.execute(
            forms_statement("datapatterns"), {"after": 0, "last": 999, "size": 999}
        ).all()
        first = store.read_log(conn, limit=2).events
        seal = conn.execute(text("SELECT * FROM datapatterns.event_seal WHERE segment = 1")).one()

    forms = [
        event_form(
            [
                *row[:-2],
                row[-2] and row[-2].hex(),
                row[-1] and json.dumps(row[-1], ensure_ascii=False, separators=(",", ":")),
            ]
        )
        for row in rows
    ]
    assert forms == [row.form for row in stored]
    assert first[0].data["said"] == HOSTILE
    leaves = hashlib.sha256(b"".join(hashlib.sha256(f.encode()).digest() for f in forms[:4]))
    numbers = b"".join(n.to_bytes(8, "big") for n in (1, 0, seal.last_position, 4))
    whole = b"datapatterns events 1\n" + numbers + NOTHING_BEFORE + leaves.digest()
    assert hashlib.sha256(whole).digest() == seal.digest


def test_sealing_is_bounded_and_goes_on_where_it_stopped(call: Call, engine: Engine) -> None:
    with engine.begin() as conn:
        append(conn, "a", count=5)

    seals = [call(chain.seal, limit=2) for _ in range(4)]
    report = call(chain.verify)

    assert [
        seal and (seal.segment, seal.after, seal.last_position, seal.events) for seal in seals
    ] == [
        (1, 0, 2, 2),
        (2, 2, 4, 2),
        (3, 4, 5, 1),
        None,
    ]
    assert (report.intact, report.segments, report.events, report.last_position) == (True, 3, 5, 5)


def test_what_is_not_final_is_not_sealed(engine: Engine) -> None:
    with engine.connect() as late, engine.begin() as conn:
        append(conn, "a")
        append(late, "late")
        conn.commit()
        held = chain.seal_all(engine)
        late.commit()
        rest = chain.seal_all(engine)

    assert (held, rest) == (1, 1)
    with engine.begin() as conn:
        assert chain.verify(conn).intact


def test_sealers_at_the_same_time_make_one_chain(engine: Engine) -> None:
    with engine.begin() as conn:
        append(conn, "a", count=60)
    barrier = Barrier(4)

    def run() -> int:
        own = create_engine(engine.url)
        barrier.wait(ENOUGH_SECONDS)
        try:
            return chain.seal_all(own, limit=3)
        finally:
            own.dispose()

    with ThreadPoolExecutor(4) as pool:
        sealed = [future.result(ENOUGH_SECONDS) for future in [pool.submit(run) for _ in range(4)]]

    with engine.begin() as conn:
        report = chain.verify(conn)
    assert (sum(sealed), report.segments, report.events, report.intact) == (20, 20, 60, True)


def test_sealing_refuses_a_snapshot_that_is_held_and_limits_that_mean_nothing(
    engine: Engine, conn: Connection
) -> None:
    with (
        engine.connect().execution_options(isolation_level="REPEATABLE READ") as old,
        pytest.raises(IsolationLevelError),
    ):
        chain.seal(old)
    with pytest.raises(ValueError, match="1 to"):
        chain.seal(conn, limit=0)
    for absent in (3, -1, 2**70, -(2**70)):
        with pytest.raises(ValueError, match=f"no segment {absent}"):
            chain.verify(conn, after_segment=absent)


def test_no_two_times_share_a_form(engine: Engine) -> None:
    times = ["-infinity", "infinity", "2026-01-01", "2026-01-01 00:00:00.000001", "0044-03-15 BC"]
    with engine.begin() as conn:
        append(conn, "a")
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        forms = set()
        for number, at in enumerate(times):
            conn.execute(text("UPDATE datapatterns.event SET at = :at"), {"at": at})
            conn.exec_driver_sql(f"SET LOCAL timezone = 'Etc/GMT+{number}'")
            page = {"after": 0, "last": 9, "size": 9}
            [row] = conn.execute(forms_statement("datapatterns"), page)
            forms.add(row.form)
        conn.rollback()

    assert len(forms) == len(times)


def test_an_anchor_whose_writing_broke_off_says_what_to_take_off(
    engine: Engine, tmp_path: Path
) -> None:
    path = tmp_path / "anchor.jsonl"
    anchored = HashChain(store, FileAnchor(path))
    with engine.begin() as conn:
        append(conn, "a")
    anchored.seal_all(engine)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # as a full disk leaves it

    with engine.connect() as conn:
        for use in (anchored.verify, anchored.publish):
            with pytest.raises(AnchorError, match="line 1 is not whole; take it off"):
                use(conn)
        path.write_bytes(b"")
        assert anchored.publish(conn) == 1
        assert anchored.verify(conn).anchored == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE datapatterns.event_seal SET events = 1",
        "DELETE FROM datapatterns.event_seal",
        "TRUNCATE datapatterns.event_seal",
    ],
)
def test_seals_are_append_only(conn: Connection, change: str) -> None:
    append(conn, "a")
    conn.commit()
    assert chain.seal(conn)

    with pytest.raises(Exception, match="append-only"):
        conn.execute(text(change))
