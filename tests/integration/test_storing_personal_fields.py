"""Whatever way personal fields come in, they are stored encrypted, or refused."""

from dataclasses import dataclass
from typing import Annotated
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, select

from datapatterns.errors import (
    EventDataError,
)
from datapatterns.event_sourcing import (
    NEW_STREAM,
    START,
    EventStore,
    EventTypes,
    ImportedEvent,
    NewEvent,
    Personal,
    RecordedEvent,
)
from datapatterns.event_sourcing.schema import event_tables
from tests.fixtures.colours import Call
from tests.fixtures.people import (
    CODED,
    Registered,
    Secret,
    keys,
    store,
    types,
)
from tests.fixtures.written_people import read, stream, subjects, written

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("by", [store, CODED], ids=["plain", "packed, compressed, encrypted"])
def test_personal_fields_are_stored_encrypted_and_read_as_they_were(
    call: Call, engine: Engine, by: EventStore
) -> None:
    secret, at = Secret(), stream()
    events = [Registered(at.key, secret.word, age=33, phone=secret.word), Registered(at.key, "b")]

    call(by.append, at, events, expected_version=NEW_STREAM)

    recorded: list[RecordedEvent] = call(by.read_stream, at)
    assert [e for one in recorded for e in by.decode(one)] == events
    with engine.connect() as conn:
        assert secret.found_in(conn) == []


def test_the_other_fields_stay_readable_for_sql(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, Secret().word, plan="gold"))

    data = event_tables("datapatterns").events.c.data
    row = conn.execute(select(data).order_by(data.table.c.position.desc()).limit(1)).scalar_one()

    assert row["plan"] == "gold"
    assert list(row["email"]) == ["$sealed"]


def test_imports_encrypt_too_and_are_recognised_when_they_are_repeated(engine: Engine) -> None:
    secret, source = Secret(), uuid4().hex
    streams = [stream() for _ in range(3)]
    chunk = [ImportedEvent(at, Registered(at.key, secret.word)) for at in streams * 2]

    for expected in (6, 0):
        with engine.begin() as conn:
            done = store.import_events(conn, chunk, source=source, chunk=1)
            assert done == expected

    with engine.begin() as conn:
        assert secret.found_in(conn) == []
        assert read(conn, streams[0]) == [Registered(streams[0].key, secret.word)] * 2


def test_untyped_events_of_a_declared_type_are_encrypted_or_refused(conn: Connection) -> None:
    at, secret = stream(), Secret()
    data = {"customer_id": at.key, "email": secret.word}

    written(conn, at, NewEvent("people.registered", data))
    assert read(conn, at) == [Registered(at.key, secret.word)]
    assert secret.found_in(conn) == []
    with pytest.raises(EventDataError, match="known of version 1 only"):
        written(conn, at, NewEvent("people.registered", data, schema_version=2))
    with pytest.raises(EventDataError, match="does not fit"):
        written(conn, at, NewEvent("people.registered", data | {"email": [secret.word]}))


@pytest.mark.parametrize("by", [store, EventStore(types=types)])
def test_data_that_looks_encrypted_is_refused(conn: Connection, by: EventStore) -> None:
    for data in ({"$sealed": 1}, {"a": [{"b": {"$sealed": ["x", "eA==", None]}}]}):
        with pytest.raises(EventDataError, match="rename that key"):
            written(conn, stream(), NewEvent("anything", data), by=by)
    at = stream()
    written(conn, at, NewEvent("anything", {"a": '"$sealed":', "b": "$sealed"}), by=by)
    assert store.read_stream(conn, at)[0].data == {"a": '"$sealed":', "b": "$sealed"}


def test_somebody_must_be_named_and_in_no_tag(conn: Connection) -> None:
    at = stream()
    with pytest.raises(EventDataError, match="email is about nobody"):
        written(conn, at, Registered("", "a@b"))
    with pytest.raises(EventDataError, match="a tag shows email") as raised:
        written(
            conn,
            at,
            NewEvent(
                "people.registered", {"customer_id": "1", "email": "a@b"}, tags=("email:a@b",)
            ),
        )
    assert "a@b" not in str(raised.value)
    with pytest.raises(EventDataError, match="over 500 bytes"):
        written(conn, at, Registered("9" * 501, "a@b"))


def test_lists_can_be_personal_as_a_whole_beside_tags(conn: Connection) -> None:
    ours = EventTypes()
    by = EventStore(types=ours, keys=keys)

    @ours.event("people.moved", tags=lambda e: (f"customer:{e.customer_id}",))
    @dataclass(frozen=True)
    class Moved:
        customer_id: str
        addresses: Annotated[list[str], Personal("customer_id", redacted=[])]

    at = stream()
    written(conn, at, Moved(at.key, ["1 High Street"]), by=by)
    assert read(conn, at, by=by) == [Moved(at.key, ["1 High Street"])]
    subjects.forget(conn, at.key)
    assert read(conn, at, by=by) == [Moved(at.key, [])]


def test_the_log_is_read_with_personal_fields_of_many_people(conn: Connection) -> None:
    after = store.high_water_mark(conn)
    streams = [stream() for _ in range(4)]
    for at in streams:
        written(conn, at, Registered(at.key, f"{at.key}@b"))

    # In this transaction only the stream shows them; the mark stands before it.
    assert after >= START
    assert [read(conn, at) for at in streams] == [
        [Registered(s.key, f"{s.key}@b")] for s in streams
    ]
