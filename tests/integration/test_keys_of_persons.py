"""Only the key of its person opens a value; keys rotate, expire in memory, and never show."""

import secrets
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, select, text, update

from datapatterns.errors import (
    EncryptionKeyError,
    IsolationLevelError,
    PayloadError,
    SubjectKeyError,
)
from datapatterns.event_sourcing import (
    EventStore,
    KeyRing,
    LocalKeyWrapper,
    StreamId,
    SubjectKeys,
    Subjects,
)
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.testing import ManualClock
from tests.fixtures.people import (
    MASTER,
    Registered,
    forgotten,
    keys,
    store,
    types,
)
from tests.fixtures.written_people import read, stream, subjects, written

pytestmark = pytest.mark.postgres


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


def test_a_key_that_was_moved_to_another_tenant_is_refused(conn: Connection) -> None:
    ours, theirs = (StreamId("customer", "same", of) for of in ("ours", "theirs"))
    for at in (ours, theirs):
        written(conn, at, Registered("same", "a@b"))
    table = event_tables("datapatterns").subject_keys
    moved = select(table.c.wrapped_key).where(table.c.tenant == "theirs").scalar_subquery()
    conn.execute(update(table).where(table.c.tenant == "ours").values(wrapped_key=moved))

    fresh = EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(MASTER)))
    with pytest.raises(PayloadError, match="payload of Encryption"):
        read(conn, ours, by=fresh)


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


def test_pages_of_keys_pass_nobody_by_whatever_their_order_and_tenant(conn: Connection) -> None:
    both = KeyRing({"m1": MASTER.key("m1"), "m2": secrets.token_bytes(32)}, writing="m2")
    rotated = Subjects(EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(both))))
    people = [StreamId("customer", who, of) for of, who in (("c", "1"), ("b", "1"), ("a", "9"))]
    for at in people:  # the last one first
        written(conn, at, Registered(at.key, f"{at.tenant}@b"))

    place = rotated.rewrap(conn, limit=1)
    while place is not None:
        place = rotated.rewrap(conn, place, limit=1)

    only_new = KeyRing({"m2": both.key("m2")}, writing="m2")
    afterwards = EventStore(types=types, keys=SubjectKeys(LocalKeyWrapper(only_new)))
    for at in people:
        assert read(conn, at, by=afterwards) == [Registered(at.key, f"{at.tenant}@b")]


class Garbling(LocalKeyWrapper):
    """Wraps keys so that nobody unwraps them again."""

    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        return super().wrap(data_key[::-1], bound_to=bound_to)


class Truncating(LocalKeyWrapper):
    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        return super().wrap(data_key, bound_to=bound_to)[:-1]


class Halving(LocalKeyWrapper):
    def unwrap(self, wrapped: bytes, *, bound_to: bytes) -> bytes:
        return super().unwrap(wrapped, bound_to=bound_to)[:16]


def test_nothing_is_encrypted_under_half_a_key(conn: Connection) -> None:
    halving = EventStore(types=types, keys=SubjectKeys(Halving(MASTER)))

    with pytest.raises(SubjectKeyError, match="is not 32 bytes long"):
        written(conn, stream(), Registered(uuid4().hex, "a@b"), by=halving)


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
        self.asked = self.wrapped = 0

    def wrap(self, data_key: bytes, *, bound_to: bytes) -> bytes:
        self.wrapped += 1
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
    written(conn, at, Registered(at.key, "c@d"), by=by)
    assert (wrapper.asked, wrapper.wrapped) == (1, 1)

    clock.advance(11)
    read(conn, at, by=by)
    assert wrapper.asked == 2
    for _ in range(3):
        written(conn, stream(), Registered(uuid4().hex, "a@b"), by=by)
    assert len(in_memory(cached)) == 2
    # A key in memory opens nothing once it is gone from the table.
    read(conn, at, by=by)
    subjects.forget(conn, at.key)
    assert read(conn, at, by=by) == [forgotten(at.key)] * 2


def test_the_wrapper_is_asked_for_keys_of_the_tenant_alone(conn: Connection) -> None:
    wrapper = Counting()
    by = EventStore(types=types, keys=SubjectKeys(wrapper, cache_seconds=0))
    ours, theirs = (StreamId("customer", "same", of) for of in ("ours", "theirs"))
    for at in (ours, theirs):
        written(conn, at, Registered("same", "a@b"))

    read(conn, ours, by=by)

    assert wrapper.asked == 1


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
