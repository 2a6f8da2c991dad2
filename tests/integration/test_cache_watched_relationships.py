"""Sessions that are watched tell of rows that relationships write, whatever class they are of."""

from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, ForeignKey, Select, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from datapatterns.cache_aside import TAGGED, Cache
from tests.fixtures.caches import open_cache

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    __mapper_args__ = {  # noqa: RUF012 -- as SQLAlchemy declares it
        "polymorphic_on": "kind",
        "polymorphic_identity": "person",
    }

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    clubs: Mapped[list["Club"]] = relationship(secondary="membership", back_populates="people")
    # Neither has a counterpart: who is moved or orphaned does not know of it before the flush.
    pets: Mapped[list["Pet"]] = relationship()
    notes: Mapped[list["Note"]] = relationship(cascade="all, delete-orphan")


class Manager(Person):
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012 -- as SQLAlchemy declares it


class Engineer(Person):
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012 -- as SQLAlchemy declares it


class Club(Base):
    __tablename__ = "club"

    id: Mapped[int] = mapped_column(primary_key=True)
    people: Mapped[list[Person]] = relationship(secondary="membership", back_populates="clubs")


class Membership(Base):
    __tablename__ = "membership"

    person_id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True, info=TAGGED)
    club_id: Mapped[int] = mapped_column(ForeignKey("club.id"), primary_key=True)


class Pet(Base):
    __tablename__ = "pet"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[int | None] = mapped_column(ForeignKey("person.id"), info=TAGGED)


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    about: Mapped[int] = mapped_column(ForeignKey("person.id"), info=TAGGED)


@pytest.fixture
def people(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        pets, notes = [Pet(id=1), Pet(id=2)], [Note(id=1), Note(id=2)]
        session.add(Manager(id=1, clubs=[Club(id=1), Club(id=2)], pets=pets, notes=notes))
        session.add(Manager(id=2))
    return engine


@pytest.fixture
def cache(people: Engine, redis_client: Redis) -> Iterator[Cache]:
    with open_cache(redis_client, people) as cache:
        yield cache


def first(session: Session) -> Person:
    person = session.info["first"] = session.get_one(Person, 1)  # kept until the flush
    return person


def delete_a_club(session: Session) -> None:
    session.delete(session.get_one(Club, 1))


def leave_from_the_club(session: Session) -> None:
    club = session.info["club"] = session.get_one(Club, 2)
    club.people.remove(first(session))


def move_a_pet(session: Session) -> None:
    other = session.info["other"] = session.get_one(Person, 2)
    other.pets.append(session.get_one(Pet, 1))


CLUBS = select(Membership.club_id).where(Membership.person_id == 1).order_by(Membership.club_id)
PETS = select(Pet.id).where(Pet.owner == 1).order_by(Pet.id)
NOTES = select(Note.id).where(Note.about == 1).order_by(Note.id)
WRITES: list[tuple[Select[int], Callable[[Session], object]]] = [
    (CLUBS, lambda session: first(session).clubs.append(Club(id=3))),
    (CLUBS, lambda session: first(session).clubs.pop()),
    (CLUBS, lambda session: session.delete(first(session))),
    (CLUBS, delete_a_club),
    (CLUBS, leave_from_the_club),
    (PETS, lambda session: first(session).pets.pop()),
    (PETS, lambda session: session.delete(first(session))),
    (PETS, move_a_pet),
    (NOTES, lambda session: first(session).notes.pop()),
    (NOTES, lambda session: session.delete(first(session))),
]


@pytest.mark.parametrize("further", [(), (Person,), (Club, Person)], ids=["", "person", "both"])
@pytest.mark.parametrize("write", WRITES)
def test_what_a_relationship_writes_is_forgotten(
    cache: Cache,
    people: Engine,
    write: tuple[Select[int], Callable[[Session], object]],
    further: tuple[type, ...],
) -> None:
    query, change = write

    class OwnSession(Session):
        pass

    cache.watch_tags(OwnSession, Membership, Pet, Note, *further)
    assert len(cache.query(query)) == 2
    with OwnSession(people) as session, session.begin():
        change(session)

    with people.connect() as conn:
        assert cache.query(query) == conn.execute(query).all() != [(1,), (2,)]


def test_whichever_class_is_written_its_table_is(cache: Cache, people: Engine) -> None:
    class OwnSession(Session):
        pass

    everybody = select(Person.id).order_by(Person.id)
    cache.watch_tags(OwnSession, Manager)
    assert cache.query(everybody) == [(1,), (2,)]
    with OwnSession(people) as session, session.begin():
        session.add(Engineer(id=3))

    assert cache.query(everybody) == [(1,), (2,), (3,)]


def test_the_entry_of_an_orphan_is_forgotten(cache: Cache, people: Engine) -> None:
    class OwnSession(Session):
        pass

    def is_there(conn: Connection, note_id: int) -> bool:
        return conn.scalar(select(Note.id).where(Note.id == note_id)) is not None

    note = cache.cached(is_there)
    cache.watch(OwnSession, Note)
    assert note(2)
    with OwnSession(people) as session, session.begin():
        first(session).notes.pop()

    assert not note(2)
