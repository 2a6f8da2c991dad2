"""No error, log or repr of ours shows what is personal, nor a key."""

from collections.abc import Callable
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    KeyRing,
    LocalKeyWrapper,
    NewEvent,
    StreamId,
    SubjectKeys,
    Subjects,
)
from tests.fixtures.canaries import Canary
from tests.fixtures.people import Customer, Registered, Secret, keys, store, types

pytestmark = pytest.mark.postgres

STRANGER = KeyRing({"other": b"s" * 32}, writing="other")
WITHOUT_KEYS = EventStore(types=types)
OTHER_KEYS = EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(STRANGER)))
Act = Callable[[Connection, StreamId, str], object]


def append(conn: Connection, at: StreamId, word: str, by: EventStore = store) -> None:
    by.append(conn, at, [Registered(at.key, word)], expected_version=ANY)


def append_about_nobody(conn: Connection, at: StreamId, word: str) -> None:
    store.append(conn, at, [Registered("", word)], expected_version=ANY)


def append_in_a_tag(conn: Connection, at: StreamId, word: str) -> None:
    data = {"customer_id": at.key, "email": word}
    event = NewEvent("people.registered", data, tags=(f"email:{word}",))
    store.append(conn, at, [event], expected_version=ANY)


def append_what_does_not_fit(conn: Connection, at: StreamId, word: str) -> None:
    data = {"customer_id": at.key, "email": word, "age": word}
    store.append(conn, at, [NewEvent("people.registered", data)], expected_version=ANY)


def append_after_forgetting(conn: Connection, at: StreamId, word: str) -> None:
    Subjects(store).forget(conn, at.key)
    append(conn, at, word)


def append_where_the_database_refuses(conn: Connection, at: StreamId, word: str) -> None:
    conn.execute(text("ALTER TABLE datapatterns.event ADD CHECK (data->>'plan' <> 'basic')"))
    append(conn, at, word)


def read_without_keys(conn: Connection, at: StreamId, word: str) -> None:
    append(conn, at, word)
    WITHOUT_KEYS.load(conn, Customer, at.key)


def read_with_other_keys(conn: Connection, at: StreamId, word: str) -> None:
    append(conn, at, word)
    OTHER_KEYS.load(conn, Customer, at.key)


def read_what_was_moved(conn: Connection, at: StreamId, word: str) -> None:
    append(conn, at, word)
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
    conn.execute(text("UPDATE datapatterns.event SET event_id = gen_random_uuid()"))
    store.load(conn, Customer, at.key)


@pytest.mark.parametrize(
    "act",
    [
        append_about_nobody,
        append_in_a_tag,
        append_what_does_not_fit,
        append_after_forgetting,
        append_where_the_database_refuses,
        read_without_keys,
        read_with_other_keys,
        read_what_was_moved,
    ],
)
def test_errors_show_nothing_personal(act: Act, canary: Canary, engine: Engine) -> None:
    at = StreamId("customer", uuid4().hex)

    with engine.connect() as conn, pytest.raises(Exception, match=r"\w") as raised:
        act(conn, at, canary.word)

    canary.show_raised(raised.value)


def test_were_it_not_encrypted_the_driver_would_show_it(engine: Engine) -> None:
    word = Secret().word
    with engine.connect() as conn:
        conn.execute(text("ALTER TABLE datapatterns.event ADD CHECK (data->>'plan' <> 'basic')"))
        plain = NewEvent("not.declared", {"plan": "basic", "email": word})
        with pytest.raises(DBAPIError) as raised:
            store.append(conn, StreamId("customer", "1"), [plain], expected_version=ANY)

    assert word in str(raised.value)


def test_a_wrapper_that_fails_shows_no_key(canary: Canary, engine: Engine) -> None:
    key = canary.word.encode().ljust(32, b"x")
    ring = KeyRing({"m": key}, writing="m")
    wrapper = LocalKeyWrapper(ring)
    ours = SubjectKeys(wrapper)

    with pytest.raises(Exception, match="belongs to another") as raised:
        wrapper.unwrap(wrapper.wrap(key, bound_to=b"a"), bound_to=b"b")
    canary.show_raised(raised.value)
    canary.show(ring, wrapper, ours, EventStore(keys=ours), Subjects(EventStore(keys=ours)), keys)
    with engine.begin() as conn:
        append(conn, StreamId("customer", uuid4().hex), "a@b", EventStore(types=types, keys=ours))
    canary.show(ours)
