"""A person whose key is gone is gone: from events, snapshots and read models, old and new."""

import secrets
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.exc import ProgrammingError

from datapatterns.errors import (
    SubjectForgottenError,
    SubjectKeyError,
)
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    Forgotten,
    StreamId,
    SubjectForgotten,
    Subjects,
)
from datapatterns.event_sourcing.content import contents
from datapatterns.event_sourcing.schema import event_tables
from tests.fixtures.colours import Call
from tests.fixtures.people import (
    CODED,
    Booked,
    Customer,
    Passenger,
    Registered,
    Secret,
    forgotten,
    keys,
    store,
    types,
)
from tests.fixtures.written_people import read, stream, subjects, written

pytestmark = pytest.mark.postgres


def begun_from(loaded: Customer) -> tuple[list[str], int]:
    """Return the state, and the version of the snapshot that its load began with."""
    return loaded.emails, loaded._history.snapshot_version  # noqa: SLF001 -- no other way to tell


def snapshots_of(conn: Connection, at: StreamId) -> int:
    return len(
        conn.execute(
            text(
                "SELECT 1 FROM datapatterns.snapshot n JOIN datapatterns.stream s"
                " ON s.id = n.stream_id WHERE s.key = :key"
            ),
            {"key": at.key},
        ).all()
    )


@pytest.mark.parametrize("by", [store, CODED], ids=["plain", "packed, compressed, encrypted"])
def test_who_was_forgotten_is_read_as_what_the_fields_declare(
    call: Call, engine: Engine, by: EventStore
) -> None:
    secret, at, other = Secret(), stream(), uuid4().int % 10**9
    booked = Booked("LH1", [Passenger(other, secret.word, "1A"), Passenger(7, "Ann", "1B")])
    call(by.append, at, [Registered(at.key, secret.word, "gold", 33, "1")], expected_version=ANY)
    call(by.append, at, [booked], expected_version=ANY)

    done = call(Subjects(by).forget, at.key)
    call(Subjects(by).forget, other)

    assert isinstance(done, Forgotten)
    recorded = call(by.read_stream, at)
    first, second = [e for one in recorded for e in by.decode(one)]
    assert first == replace(forgotten(at.key), plan="gold")
    assert second == Booked(
        "LH1", [Passenger(other, "[forgotten]", "1A"), Passenger(7, "Ann", "1B")]
    )
    with engine.connect() as conn:
        assert secret.found_in(conn) == []


def test_one_tenant_forgets_and_the_other_remembers(conn: Connection) -> None:
    key = uuid4().hex
    ours, theirs = StreamId("customer", key, "ours"), StreamId("customer", key, "theirs")
    written(conn, ours, Registered(key, "a@b"))
    written(conn, theirs, Registered(key, "a@b"))

    subjects.forget(conn, key, tenant="ours")

    assert read(conn, ours) == [forgotten(key)]
    assert read(conn, theirs) == [Registered(key, "a@b")]


def test_only_snapshots_about_the_person_are_deleted(conn: Connection) -> None:
    key = uuid4().hex
    ours, theirs = StreamId("customer", key, "ours"), StreamId("customer", key, "theirs")
    other = StreamId("customer", uuid4().hex, "ours")
    for at in (ours, theirs, other):
        written(conn, at, Registered(at.key, "a@b"))
        store.save_snapshot(conn, store.load(conn, Customer, at.key, tenant=at.tenant))

    assert subjects.forget(conn, key, tenant="ours").snapshots == 1

    for at in (theirs, other):
        loaded = store.load(conn, Customer, at.key, tenant=at.tenant)
        assert begun_from(loaded) == (["a@b"], 1)


def test_when_a_person_was_forgotten_stays_known(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    keys = event_tables("datapatterns").subject_keys
    when = select(keys.c.shredded_at).where(keys.c.subject == at.key)
    subjects.forget(conn, at.key)
    first = conn.scalar(when)

    subjects.forget(conn, at.key)

    assert first is not None
    assert conn.scalar(when) == first


def test_upcasters_see_what_readers_see(conn: Connection) -> None:
    ours = type(types)()
    newer = EventStore(types=ours, keys=keys)

    @ours.event("people.registered", version=2)
    @dataclass(frozen=True)
    class Renamed:
        customer_id: str
        address: str

    @ours.upcast("people.registered", 1)
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {"customer_id": data["customer_id"], "address": f"mailto:{data['email']}"}

    at = stream()
    written(conn, at, Registered(at.key, "a@b"))

    assert read(conn, at, by=newer) == [Renamed(at.key, "mailto:a@b")]
    subjects.forget(conn, at.key)
    assert read(conn, at, by=newer) == [Renamed(at.key, "mailto:[forgotten]")]


def test_forgetting_is_told_to_the_log_once(call: Call) -> None:
    who, told = uuid4().hex, []
    purging = Subjects(store, purges=[lambda _c, s, *, tenant: told.append((s, tenant))])

    first: Forgotten = call(purging.forget, who, metadata={"asked": "by letter"})
    second: Forgotten = call(purging.forget, who)

    assert first.position is not None
    assert second == Forgotten(None, 0, had_key=False)
    [event] = call(store.read_stream, StreamId("forgotten", who))
    assert store.decode(event) == [SubjectForgotten(who)]
    assert event.metadata == {"asked": "by letter"}
    assert told == [(who, ""), (who, "")]


def test_nothing_personal_is_stored_about_somebody_who_was_forgotten(conn: Connection) -> None:
    at = stream()
    subjects.forget(conn, at.key)  # also of whom nothing was known

    with pytest.raises(SubjectForgottenError, match=at.key) as raised:
        written(conn, at, Registered(at.key, "a@b"))

    assert "a@b" not in str(raised.value)
    assert store.read_stream(conn, at) == []
    # What was read as forgotten may be written again, say when a stream is copied.
    written(conn, at, forgotten(at.key))
    assert read(conn, at) == [forgotten(at.key)]


def test_what_breaks_off_has_forgotten_nobody(engine: Engine) -> None:
    at, secret = stream(), Secret()
    with engine.begin() as conn:
        written(conn, at, Registered(at.key, secret.word))

    def broken(_conn: Connection, _subject: str, *, tenant: str) -> None:
        raise RuntimeError(tenant)

    with pytest.raises(RuntimeError), engine.begin() as conn:
        Subjects(store, purges=[broken]).forget(conn, at.key)

    with engine.begin() as conn:
        assert read(conn, at) == [Registered(at.key, secret.word)]
        assert store.read_stream(conn, StreamId("forgotten", at.key)) == []


@pytest.mark.parametrize("by", [store, CODED], ids=["plain", "packed, compressed, encrypted"])
def test_snapshots_hold_personal_state_only_under_the_keys_of_all(
    call: Call, engine: Engine, by: EventStore
) -> None:
    secret, at, friend = Secret(), stream(), uuid4().hex
    customer: Customer = call(by.load, Customer, at.key)
    customer.register(secret.word)
    customer.register("friend@b", friend)
    call(by.save, customer)
    assert call(by.save_snapshot, customer)
    with engine.connect() as conn:
        assert secret.found_in(conn) == []
        assert snapshots_of(conn, at) == 1

    again: Customer = call(by.load, Customer, at.key)
    assert begun_from(again) == ([secret.word, "friend@b"], 2)

    done: Forgotten = call(Subjects(by).forget, friend)
    assert done.snapshots == 1
    with engine.connect() as conn:
        assert snapshots_of(conn, at) == 0
    again = call(by.load, Customer, at.key)
    assert begun_from(again) == ([secret.word, "[forgotten]"], 0)
    # The next one is about those who are left.
    assert call(by.save_snapshot, again)
    latest: Customer = call(by.load, Customer, at.key)
    assert begun_from(latest) == ([secret.word, "[forgotten]"], 2)


def test_a_state_that_was_loaded_before_is_not_stored_after_the_person_is_forgotten(
    conn: Connection,
) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    loaded = store.load(conn, Customer, at.key)
    subjects.forget(conn, at.key)

    assert not store.save_snapshot(conn, loaded)

    assert snapshots_of(conn, at) == 0


def test_a_snapshot_of_a_state_that_began_with_a_snapshot_is_encrypted_too(
    conn: Connection,
) -> None:
    at, secret = stream(), Secret()
    written(conn, at, Registered(at.key, secret.word))
    store.save_snapshot(conn, store.load(conn, Customer, at.key))
    written(conn, at, Booked("LH1", []))  # about nobody

    later = store.load(conn, Customer, at.key)
    assert begun_from(later) == ([secret.word], 1)
    assert store.save_snapshot(conn, later)

    assert secret.found_in(conn) == []
    subjects.forget(conn, at.key)
    assert begun_from(store.load(conn, Customer, at.key)) == (["[forgotten]"], 0)


def test_a_snapshot_that_outlived_its_key_is_a_replay(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    store.save_snapshot(conn, store.load(conn, Customer, at.key))
    keys = event_tables("datapatterns").subject_keys
    gone = update(keys).where(keys.c.subject == at.key)
    conn.execute(gone.values(wrapped_key=None, shredded_at=func.now()))

    assert begun_from(store.load(conn, Customer, at.key)) == (["[forgotten]"], 0)


def test_a_question_about_keys_that_fails_is_no_damaged_snapshot(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    store.save_snapshot(conn, store.load(conn, Customer, at.key))
    asked = "datapatterns.read_subject_keys(text[], text[])"
    conn.execute(text(f"ALTER FUNCTION {asked} RENAME TO elsewhere"))

    with pytest.raises(ProgrammingError, match="read_subject_keys"):
        store.load(conn, Customer, at.key)


def test_a_state_about_too_many_persons_is_not_stored(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "PERSONS_MAX", 1)
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    assert store.save_snapshot(conn, store.load(conn, Customer, at.key))

    written(conn, at, Registered(uuid4().hex, "c@d"))

    assert not store.save_snapshot(conn, store.load(conn, Customer, at.key))


def test_a_snapshot_that_cannot_be_decrypted_is_a_replay(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    store.save_snapshot(conn, store.load(conn, Customer, at.key))
    without_keys = EventStore(types=types)
    snapshots = event_tables("datapatterns").snapshots
    conn.execute(update(snapshots).values(payload=b"\0\0\0\2[]" + secrets.token_bytes(40)))

    assert store.load(conn, Customer, at.key).emails == ["a@b"]
    with pytest.raises(SubjectKeyError, match="keys are needed"):
        without_keys.load(conn, Customer, at.key)
