"""Read models, readers of the typed log, units, deciders and exports know of forgotten persons."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, String, delete, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.cqrs import DELETE, Projection, Projections, on
from datapatterns.event_sourcing import (
    ANY,
    EventExport,
    EventStore,
    LinesImport,
    NewEvent,
    RecordedEvent,
    StoredEvents,
    StreamId,
    SubjectForgotten,
    Subjects,
    Tagged,
    TypedLog,
)
from tests.fixtures.people import CODED, Registered, Secret, forgotten, store

pytestmark = pytest.mark.postgres
HEADER = b'{"format":"datapatterns.events","format_version":1}'


class Base(DeclarativeBase):
    pass


class Address(Base):
    __tablename__ = "address_book"
    customer_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    email: Mapped[str] = mapped_column(default="")


class AddressBook(Projection, into=Address, version=1):
    @on(Registered, key=lambda e, _: e.customer_id)
    def _(self, row: Address, e: Registered, _meta: RecordedEvent) -> None:
        row.email = e.email

    @on(SubjectForgotten, key=lambda e, _: e.subject)
    def _(self, _row: Address, _e: SubjectForgotten, _meta: RecordedEvent) -> object:
        return DELETE


@pytest.fixture
def projections(engine: Engine) -> Projections:
    Base.metadata.create_all(engine)
    return Projections(store)


def registered(engine: Engine, word: str) -> str:
    who = uuid4().hex
    with engine.begin() as conn:
        store.append(conn, StreamId("customer", who), [Registered(who, word)], expected_version=ANY)
    return who


def emails(conn: Connection) -> list[str]:
    return sorted(conn.scalars(select(Address.email)))


def test_a_projection_deletes_what_it_holds_when_it_hears_of_it(
    engine: Engine, projections: Projections
) -> None:
    secret = Secret()
    who, _ = registered(engine, secret.word), registered(engine, "friend@b")
    projections.catch_up(engine, AddressBook)
    with engine.begin() as conn:
        assert secret.found_in(conn) == ["public.address_book"]
        Subjects(store).forget(conn, who)

    projections.catch_up(engine, AddressBook)

    with engine.begin() as conn:
        assert emails(conn) == ["friend@b"]
        assert secret.found_in(conn) == []
    projections.rebuild(engine, AddressBook)
    assert projections.verify(engine, AddressBook).differences == []
    with engine.begin() as conn:
        assert emails(conn) == ["friend@b"]


def test_a_purge_deletes_it_at_once_and_a_late_projection_does_not_bring_it_back(
    engine: Engine, projections: Projections
) -> None:
    def purge(conn: Connection, subject: str, *, tenant: str) -> None:
        assert tenant == ""
        conn.execute(delete(Address).where(Address.customer_id == subject))

    secret = Secret()
    who = registered(engine, secret.word)
    projections.catch_up(engine, AddressBook)
    with engine.begin() as conn:
        again = Registered(who, f"{secret.word}2")
        store.append(conn, StreamId("customer", who), [again], expected_version=ANY)

    with engine.begin() as conn:
        Subjects(store, purges=[purge]).forget(conn, who)
        assert secret.found_in(conn) == []

    # The second event has not been projected yet: it is read as forgotten by now.
    projections.catch_up(engine, AddressBook)
    with engine.begin() as conn:
        assert emails(conn) == []
        assert secret.found_in(conn) == []


@pytest.mark.parametrize("by", [store, CODED], ids=["plain", "packed, compressed, encrypted"])
def test_readers_of_the_log_by_type_and_by_tag_see_the_same(engine: Engine, by: EventStore) -> None:
    who, tag = uuid4().hex, f"customer:{uuid4().hex}"
    event = Registered(who, "a@b")
    with engine.begin() as conn:
        start = by.high_water_mark(conn)
        data = {"customer_id": who, "email": "a@b", "phone": ""}
        by.append(
            conn,
            StreamId("customer", who),
            [NewEvent("people.registered", data, tags=(tag,))],
            expected_version=ANY,
        )

    def all_ways() -> Iterator[list[Any]]:
        with engine.begin() as conn:
            yield [e.event for e in TypedLog(by).read(conn, start).events]
            yield [e for one in by.read_log(conn, start).events for e in by.decode(one)]
            tagged = by.read_tagged(conn, Tagged((tag,))).events
            yield [e for one in tagged for e in by.decode(one)]

    assert list(all_ways()) == [[event]] * 3
    with engine.begin() as conn:
        Subjects(by).forget(conn, who)
    gone, told = forgotten(who), SubjectForgotten(who)
    assert list(all_ways()) == [[gone, told], [gone, told], [gone]]


def test_a_unit_of_work_encrypts_what_it_has_collected(engine: Engine) -> None:
    who, secret = uuid4().hex, Secret()
    at = StreamId("customer", who)

    with Session(engine) as session, session.begin():
        store.unit(session).append(at, [Registered(who, secret.word)], expected_version=ANY)

    with engine.begin() as conn:
        [recorded] = store.read_stream(conn, at)
        assert store.decode(recorded) == [Registered(who, secret.word)]
        assert secret.found_in(conn) == []


def test_files_of_events_hold_personal_fields_encrypted_and_imports_encrypt_the_others(
    engine: Engine,
) -> None:
    secret = Secret()
    who, other = registered(engine, secret.word), uuid4().hex
    file = BytesIO()
    EventExport(StoredEvents(store)).write(engine, file.write)
    assert secret.word.encode() not in file.getvalue()
    [sealed] = [line for line in file.getvalue().splitlines() if b"$sealed" in line]
    line = json.loads(sealed) | {
        "id": str(uuid4()),
        "key": other,
        "data": {"customer_id": other, "email": secret.word},
    }
    with engine.begin() as conn:  # as into an empty database that has the keys
        conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER USER"))
        for table in ("event", "stream"):
            conn.execute(text(f"DELETE FROM datapatterns.{table}"))  # noqa: S608
        conn.execute(text("ALTER TABLE datapatterns.event ENABLE TRIGGER USER"))

    lines = b"\n".join([HEADER, sealed, json.dumps(line).encode(), b""])
    LinesImport(store, source="others").run(engine, BytesIO(lines))

    with engine.begin() as conn:
        assert secret.found_in(conn) == []
        for key in (who, other):
            [recorded] = store.read_stream(conn, StreamId("customer", key))
            assert recorded.data["email"] == secret.word
