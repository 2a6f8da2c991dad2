"""Imported events are found by their tags, and conditions see them coming."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.errors import ConditionConflictError, ImportChunkError
from datapatterns.event_sourcing import (
    ANY,
    Condition,
    EventStore,
    ImportedEvent,
    NewEvent,
    StreamId,
    Tagged,
)
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.colours import Call

pytestmark = pytest.mark.postgres
store = EventStore()
COURSE = Tagged(("course:c1",))


def tagged(*tags: str, key: str = "1", tenant: str = "") -> ImportedEvent:
    return ImportedEvent(StreamId("course", key, tenant), NewEvent("enrolled", {}, tags=tags))


def append_unless(conn: Connection, condition: Condition) -> None:
    store.append(
        conn, StreamId("rival", "1"), [NewEvent("e", {})], expected_version=ANY, unless=condition
    )


def test_imported_events_are_found_by_tags_as_appended_ones_are(call: Call) -> None:
    hard = 'a "b" \\ {c},é NULL'
    events = [
        tagged("course:c1", hard),
        tagged(),
        tagged("course:c1", key="2"),
        tagged("course:c1", tenant="other"),
        tagged("course:c1", "course:c1", key="3"),
    ]

    call(store.import_events, events, source="till", chunk=1)

    found = call(store.read_tagged, COURSE).events
    assert [(each.stream.key, each.version) for each in found] == [("1", 1), ("2", 1), ("3", 1)]
    assert found[0].tags == ("course:c1", hard)
    assert len(call(store.read_tagged, Tagged((hard,))).events) == 1
    assert len(call(store.read_tagged, COURSE, tenant="other").events) == 1


def test_a_second_chunk_indexes_only_what_it_has_written(conn: Connection) -> None:
    for chunk in (1, 2):
        store.import_events(conn, [tagged("course:c1")], source="till", chunk=chunk)

    assert conn.scalar(text("SELECT count(*) FROM datapatterns.event_tag")) == 2


def test_a_chunk_with_other_tags_is_another_chunk(conn: Connection) -> None:
    store.import_events(conn, [tagged("course:c1")], source="till", chunk=1)

    with pytest.raises(ImportChunkError):
        store.import_events(conn, [tagged("course:c2")], source="till", chunk=1)


def test_a_condition_waits_for_an_import_that_may_break_it(engine: Engine) -> None:
    with engine.begin() as conn:
        condition = store.read_tagged(conn, COURSE).condition
    assert condition is not None

    def decide() -> None:
        with engine.begin() as conn:
            append_unless(conn, condition)

    with ThreadPoolExecutor(1) as rival, engine.connect() as importer:
        store.import_events(importer, [tagged("course:c1")], source="till", chunk=1)
        deciding = rival.submit(decide)
        until_blocked_by(engine, importer)
        importer.commit()

        with pytest.raises(ConditionConflictError):
            deciding.result(30)


def test_without_the_locks_a_condition_would_not_see_the_import_coming(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test before."""

    def no_lock(_: Connection, tags: Mapping[str, Any], *, schema: str) -> None:
        del tags, schema

    monkeypatch.setattr("datapatterns.event_sourcing.transfer.importing.lock_tags", no_lock)
    with engine.begin() as conn:
        condition = store.read_tagged(conn, COURSE).condition
    assert condition is not None

    with engine.connect() as importer:
        store.import_events(importer, [tagged("course:c1")], source="till", chunk=1)
        with engine.begin() as conn:
            append_unless(conn, condition)  # both take place
        importer.commit()
