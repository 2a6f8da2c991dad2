"""A person whose key is gone is gone: from events, snapshots and read models, old and new."""

import secrets
from dataclasses import dataclass, replace
from typing import Annotated, Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, select, text, update

from datapatterns.errors import (
    EncryptionKeyError,
    EventDataError,
    IsolationLevelError,
    PayloadError,
    SubjectForgottenError,
    SubjectKeyError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    START,
    EventStore,
    EventTypes,
    Forgotten,
    ImportedEvent,
    KeyRing,
    LocalKeyWrapper,
    NewEvent,
    Personal,
    RecordedEvent,
    StreamId,
    SubjectForgotten,
    SubjectKeys,
    Subjects,
)
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.testing import ManualClock
from tests.fixtures.colours import Call
from tests.fixtures.people import (
    CODED,
    MASTER,
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

pytestmark = pytest.mark.postgres

subjects = Subjects(store)


def stream() -> StreamId:
    return StreamId("customer", uuid4().hex)


def written(conn: Connection, at: StreamId, *events: object, by: EventStore = store) -> None:
    by.append(conn, at, events, expected_version=ANY)


def read(conn: Connection, at: StreamId, *, by: EventStore = store) -> list[object]:
    recorded = by.read_stream(conn, at)
    return [event for one in recorded for event in by.decode(one)]


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


# -- what is stored, and what comes back -----------------------------------------------------------


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


# -- forgetting ------------------------------------------------------------------------------------


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


# -- snapshots -------------------------------------------------------------------------------------


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


# -- tampering, missing keys -----------------------------------------------------------------------


def test_a_field_moved_to_another_event_or_field_is_refused(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b", phone="123"), Registered(at.key, "c@d"))
    tables = event_tables("datapatterns")
    rows = conn.execute(
        select(tables.events.c.position, tables.events.c.data)
        .order_by(tables.events.c.position.desc())
        .limit(2)
    ).all()
    (second, theirs), (first, ours) = rows
    swapped = conn.begin_nested()
    conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))

    def store_data(position: int, data: dict[str, Any]) -> None:
        conn.execute(
            update(tables.events).where(tables.events.c.position == position).values(data=data)
        )

    for position, data in (
        (second, theirs | {"email": ours["email"]}),
        (first, ours | {"email": ours["phone"]}),
    ):
        tried = conn.begin_nested()
        store_data(position, data)
        with pytest.raises(PayloadError, match="belongs to another field, event or person"):
            store.read_stream(conn, at)
        tried.rollback()
    swapped.rollback()
    assert len(read(conn, at)) == 2


def test_a_key_of_somebody_else_or_of_another_master_is_refused(conn: Connection) -> None:
    at, other = stream(), stream()
    written(conn, at, Registered(at.key, "a@b"))
    written(conn, other, Registered(other.key, "a@b"))
    table = event_tables("datapatterns").subject_keys
    theirs = select(table.c.wrapped_key).where(table.c.subject == other.key).scalar_subquery()

    stranger = KeyRing({"m9": secrets.token_bytes(32)}, writing="m9")
    with pytest.raises(EncryptionKeyError, match="'m1' is not in the key ring"):
        read(conn, at, by=EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(stranger))))
    conn.execute(update(table).where(table.c.subject == at.key).values(wrapped_key=theirs))
    with pytest.raises(PayloadError, match="belongs to another"):
        read(conn, at)
    conn.execute(table.delete().where(table.c.subject == at.key))
    with pytest.raises(SubjectKeyError, match="restore the table, or forget them"):
        read(conn, at)
    subjects.forget(conn, at.key)
    assert read(conn, at) == [forgotten(at.key)]


def test_a_store_without_keys_neither_writes_nor_misreads_personal_fields(
    conn: Connection,
) -> None:
    at, without = stream(), EventStore(types=types)

    with pytest.raises(SubjectKeyError, match="need keys"):
        written(conn, at, Registered(at.key, "a@b"), by=without)
    written(conn, at, Registered(at.key, "a@b"))
    with pytest.raises(SubjectKeyError, match="keys are needed"):
        read(conn, at, by=without)


def test_connections_that_commit_each_statement_are_refused(engine: Engine) -> None:
    at = stream()
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn,
        pytest.raises(IsolationLevelError, match="autocommit"),
    ):
        written(conn, at, Registered(at.key, "a@b"))


# -- other ways in ---------------------------------------------------------------------------------


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


# -- keys ------------------------------------------------------------------------------------------


def test_master_keys_rotate_while_appends_go_on(engine: Engine) -> None:
    both = KeyRing({"m1": MASTER.key("m1"), "m2": secrets.token_bytes(32)}, writing="m2")
    only_new = KeyRing({"m2": both.key("m2")}, writing="m2")
    at = stream()
    with engine.begin() as conn:
        written(conn, at, Registered(at.key, "a@b"))

    with engine.begin() as holder:
        written(holder, at, Registered(at.key, "c@d"))  # holds the key
        with engine.begin() as conn:
            rotated = Subjects(EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(both))))
            place, pages = rotated.rewrap(conn, limit=2), 1
            while place is not None:
                place, pages = rotated.rewrap(conn, place, limit=2), pages + 1

    with engine.begin() as conn:
        afterwards = EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(only_new)))
        assert len(read(conn, at, by=afterwards)) == 2


class Garbling(LocalKeyWrapper):
    """Wraps keys so that nobody unwraps them again."""

    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        return super().wrap(data_key[::-1], bound_to=bound_to)


class Truncating(LocalKeyWrapper):
    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        return super().wrap(data_key, bound_to=bound_to)[:-1]


@pytest.mark.parametrize(
    ("wrapper", "error"), [(Garbling, SubjectKeyError), (Truncating, PayloadError)]
)
def test_a_key_is_not_replaced_by_what_cannot_be_unwrapped(
    conn: Connection, wrapper: type[LocalKeyWrapper], error: type[Exception]
) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))
    broken = EventStore(types=types, keys=SubjectKeys(wrapper(MASTER)))

    with pytest.raises(error):
        Subjects(broken).rewrap(conn, ("", at.key[:-1]), limit=1)

    fresh = EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(MASTER)))
    assert read(conn, at, by=fresh) == [Registered(at.key, "a@b")]


def in_memory(of: SubjectKeys) -> list[bytes]:
    return [key for _, key in of._cached.values()]  # noqa: SLF001 -- nobody else may see them


class Counting:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.local = LocalKeyWrapper(MASTER)
        self.asked = 0

    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        return self.local.wrap(data_key, bound_to=bound_to)

    def unwrap(self, wrapped: bytes, *, bound_to: bytes) -> bytes:
        self.asked += 1
        return self.local.unwrap(wrapped, bound_to=bound_to)


def test_unwrapped_keys_are_kept_for_seconds_and_only_so_many(conn: Connection) -> None:
    clock, wrapper = ManualClock(), Counting()
    cached = SubjectKeys(wrapper, cache_seconds=10, cache_keys_max=2, clock=clock)
    by = EventStore(types=types, keys=cached)
    at = stream()
    written(conn, at, Registered(at.key, "a@b"), by=by)
    read(conn, at, by=by)
    assert wrapper.asked == 1

    clock.advance(11)
    read(conn, at, by=by)
    assert wrapper.asked == 2
    for _ in range(3):
        written(conn, stream(), Registered(uuid4().hex, "a@b"), by=by)
    assert len(in_memory(cached)) == 2
    # A key in memory opens nothing once it is gone from the table.
    read(conn, at, by=by)
    subjects.forget(conn, at.key)
    assert read(conn, at, by=by) == [forgotten(at.key)]


def test_keys_that_have_expired_are_dropped_when_any_key_is_used(conn: Connection) -> None:
    clock = ManualClock()
    cached = SubjectKeys(LocalKeyWrapper(MASTER), cache_seconds=10, clock=clock)
    by = EventStore(types=types, keys=cached)
    for _ in range(3):
        written(conn, stream(), Registered(uuid4().hex, "a@b"), by=by)
    assert len(in_memory(cached)) == 3

    clock.advance(10)
    written(conn, stream(), Registered(uuid4().hex, "a@b"), by=by)

    assert len(in_memory(cached)) == 1


def test_nothing_of_keys_shows(conn: Connection) -> None:
    at = stream()
    written(conn, at, Registered(at.key, "a@b"))

    cached = in_memory(keys)[-1]
    for thing in (keys, store, subjects, LocalKeyWrapper(MASTER)):
        assert repr(cached)[2:-1] not in repr(thing)
        assert repr(MASTER.key("m1"))[2:-1] not in repr(thing)
    with pytest.raises(TypeError, match="not pickled"):
        keys.__reduce__()
