"""By whatever way events come in, and under whatever name, nothing personal is stored readable."""

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated
from uuid import uuid4

import pytest
from sqlalchemy import Connection, select

from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Aggregate,
    EventStore,
    EventTypes,
    ImportedEvent,
    NewEvent,
    Personal,
    StreamCopy,
    StreamEvents,
    StreamId,
    applies,
    unchanged,
)
from datapatterns.event_sourcing.content.encoding import EncodedEvent
from datapatterns.event_sourcing.schema import event_tables
from tests.fixtures.people import CODED, Secret, keys

types = EventTypes()
store = EventStore(types=types, keys=keys)
STREAM = StreamId("client", "c1")
OLD = "client.came"


@types.event("client.registered", version=2, renamed_from=OLD)
@dataclass(frozen=True, slots=True)
class Registered:
    client: int
    email: Annotated[str, Personal(subject="client")]


class Client(Aggregate, category="client"):
    email = ""

    @applies
    def _(self, e: Registered) -> None:
        self.email = e.email


def under_the_old_name(word: str) -> NewEvent:
    return NewEvent(OLD, {"client": 1, "email": word}, 2)


def as_stored(word: str) -> EncodedEvent:
    return EncodedEvent(OLD, 2, uuid4(), f'{{"client":1,"email":"{word}"}}', None)


def append(conn: Connection, *events: object) -> None:
    store.append(conn, STREAM, events, expected_version=NEW_STREAM)


def append_to_streams(conn: Connection, *events: object) -> None:
    store.append_to_streams(conn, [StreamEvents(STREAM, events, ANY)])


def add_to_a_unit(conn: Connection, *events: object) -> None:
    with store.unit(conn) as unit:
        for event in events:
            unit.append(STREAM, [event], expected_version=ANY)


def save(conn: Connection, event: Registered) -> None:
    client = store.load(conn, Client, STREAM.key)
    client.emit(event)
    store.save(conn, client)


def import_events(conn: Connection, *events: object) -> None:
    chunk = [ImportedEvent(STREAM, event) for event in events]
    store.import_events(conn, chunk, source="a", chunk=0)


def copy(conn: Connection, *events: object) -> None:
    source = StreamId("client", "source")
    store.append(conn, source, events, expected_version=NEW_STREAM)
    StreamCopy(store, source, STREAM, unchanged).copy_page(conn)


WAYS: dict[str, Callable[[Connection, str], None]] = {
    "an object is appended": lambda conn, word: append(conn, Registered(1, word)),
    "appended under the old name": lambda conn, word: append(conn, under_the_old_name(word)),
    "both, in one append": lambda conn, word: append(
        conn, NewEvent("other", {}), Registered(1, word), under_the_old_name(word)
    ),
    "an append to streams": lambda conn, word: append_to_streams(conn, under_the_old_name(word)),
    "a unit": lambda conn, word: add_to_a_unit(conn, under_the_old_name(word), Registered(1, word)),
    "an aggregate is saved": lambda conn, word: save(conn, Registered(1, word)),
    "an object is imported": lambda conn, word: import_events(conn, Registered(1, word)),
    "imported under the old name": lambda conn, word: import_events(conn, under_the_old_name(word)),
    "imported from a file": lambda conn, word: import_events(conn, as_stored(word)),
    "a chunk of all kinds": lambda conn, word: import_events(
        conn,
        NewEvent("other", {}),
        as_stored(word),
        Registered(1, word),
        *[under_the_old_name(word)] * 300,
    ),
    "a copy": lambda conn, word: copy(conn, under_the_old_name(word)),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_personal_is_stored_readable(conn: Connection, way: str) -> None:
    secret = Secret()

    WAYS[way](conn, secret.word)

    assert secret.found_in(conn) == []
    found = {
        event.email
        for recorded in store.read_stream(conn, STREAM, limit=1_000)
        if recorded.event_type != "other"
        for event in store.decode(recorded)
        if isinstance(event, Registered)
    }
    assert found == {secret.word}


def test_what_a_codec_has_made_elsewhere_is_stored_as_it_is(conn: Connection) -> None:
    coded = EventStore(types=types, keys=keys, codecs=CODED.codecs)
    append_to = StreamId("client", "there")
    coded.append(conn, append_to, [Registered(1, "a@b")], expected_version=NEW_STREAM)
    there = event_tables(store.schema).events
    made = conn.execute(select(there.c.event_id, there.c.payload, there.c.codec)).one()
    text = b64encode(made.payload).decode()
    from_file = EncodedEvent(OLD, 2, made.event_id, text, None, codec=made.codec)

    chunk = [ImportedEvent(STREAM, from_file), ImportedEvent(STREAM, Registered(1, "c@d"))]
    coded.import_events(conn, chunk, source="a", chunk=0)

    [first, second] = coded.read_stream(conn, STREAM)
    assert coded.decode(first) == [Registered(1, "a@b")]
    assert coded.decode(second) == [Registered(1, "c@d")]
    stored = conn.execute(select(there.c.payload).where(there.c.version == 1)).scalars().all()
    assert stored == [made.payload] * 2
