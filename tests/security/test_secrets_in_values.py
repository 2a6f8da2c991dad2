"""Rows, events and cached values are no business of logs and errors, whatever goes wrong."""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import (
    URL,
    BigInteger,
    CheckConstraint,
    Connection,
    Engine,
    Text,
    insert,
    text,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns import DataLayer
from datapatterns.cqrs import Projection, on
from datapatterns.errors import (
    AggregateError,
    EventDataError,
    EventShapeError,
    IndexKeyTakenError,
    ProjectionStoppedError,
    UncacheableValueError,
    VersionConflictError,
)
from datapatterns.event_sourcing import (
    ANY,
    NEW_STREAM,
    Aggregate,
    NewEvent,
    RecordedEvent,
    StreamId,
    applies,
    event,
    every,
)
from datapatterns.index_table import IndexTable
from datapatterns.sharding import EntityGroup, Hash, ShardCluster
from datapatterns.sql.discretion import discreet
from tests.fixtures.caches import PATIENT
from tests.fixtures.canaries import Canary
from tests.fixtures.commands import Run
from tests.fixtures.empty_database import shown
from tests.fixtures.index_tables import build
from tests.fixtures.shard_model import named

STREAM = StreamId("canary", "1")
kennels = EntityGroup("canary_kennel", strategy=Hash(buckets=8))


class Colour(Enum):
    RED = "red"


@event("canary.painted")
@dataclass(frozen=True, slots=True)
class Painted:
    colour: Colour
    note: str = ""


@event("canary.fed")
@dataclass(frozen=True, slots=True)
class Fed:
    note: str


class Base(DeclarativeBase):
    pass


class Bird(Base):
    __tablename__ = "bird"
    __shard__ = kennels.by("id")
    __table_args__ = (CheckConstraint("length(note) < 5", "short"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    note: Mapped[str | None] = mapped_column(Text)


class Person(Base):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Birds(Projection, into=Bird, version=1):
    @on(Fed, key=lambda _e, _meta: 1)
    def _(self, row: Bird, e: Fed, _meta: RecordedEvent) -> None:
        row.note = e.note


class Cage(Aggregate, category="canary", snapshot=every(1)):
    note: str = ""
    colour: Colour = Colour.RED

    @applies
    def _(self, e: Fed) -> None:
        self.note = e.note


by_email = IndexTable("person_by_email", on=[Person.email], unique=True)


@pytest.fixture
def layer(database_url: URL, redis_url: str) -> Iterator[DataLayer]:
    with closing(DataLayer(database_url, redis_url=redis_url)) as layer:
        Base.metadata.create_all(layer.engine)
        yield layer


def refused(canary: Canary, raised: "pytest.ExceptionInfo[Any]") -> Any:  # noqa: ANN401
    canary.show_raised(raised.value)
    return raised.value


def test_constraints_say_which_they_are_and_not_what_violates_them(
    layer: DataLayer, canary: Canary
) -> None:
    person = insert(Person).values(id=1, email=canary.word)
    with layer.engine.begin() as conn:
        conn.execute(person)

    with layer.engine.connect() as conn, pytest.raises(IntegrityError) as raised:
        conn.execute(person.values(id=2))
    error = refused(canary, raised)

    assert "person_email_key" in str(error)
    assert canary.word in error.orig.diag.message_detail  # a program may look
    with layer.engine.connect() as conn, pytest.raises(IntegrityError) as raised:
        conn.execute(insert(Bird).values(id=1, note=canary.word))
    assert "short" in str(refused(canary, raised))
    unknown = text("SELECT emial FROM person WHERE email = :email")
    with layer.engine.connect() as conn, pytest.raises(DBAPIError) as unknown_column:
        conn.execute(unknown, {"email": canary.word})
    assert "HINT" in str(refused(canary, unknown_column))


def test_an_engine_that_is_not_discreet_quotes_the_row(engine: Engine, canary: Canary) -> None:
    """The control: what is hidden above would be there to see."""
    Base.metadata.create_all(engine)
    bird = insert(Bird).values(id=1, note=canary.word)

    with engine.connect() as conn, pytest.raises(IntegrityError) as raised:
        conn.execute(bird)
    with discreet(engine).connect() as conn, pytest.raises(IntegrityError) as without_details:
        conn.execute(bird)

    assert str(raised.value).count(canary.word) == 2  # in the details and in the parameters
    assert str(without_details.value).count(canary.word) == 1


def test_a_canary_that_was_shown_is_noticed(canary: Canary) -> None:
    logging.getLogger("datapatterns.anything").debug("done", extra={"row": canary.word})

    with pytest.raises(AssertionError, match="<canary>"):
        canary.assert_hidden()
    canary.caplog.clear()
    canary.show(ValueError(canary.word))
    with pytest.raises(AssertionError, match="<canary>"):
        canary.assert_hidden()
    canary.said.clear()


def test_an_index_tells_that_a_key_is_taken_and_not_which(layer: DataLayer, canary: Canary) -> None:
    with layer.engine.begin() as conn:
        conn.execute(text("ALTER TABLE person DROP CONSTRAINT person_email_key"))
    build(layer.engine, by_email)
    person = insert(Person).values(id=1, email=canary.word)
    with layer.engine.begin() as conn:
        conn.execute(person)

    with (
        layer.engine.connect() as conn,
        pytest.raises(IndexKeyTakenError) as raised,
        by_email.key_conflicts(),
    ):
        conn.execute(person.values(id=2))
    canary.show(by_email, by_email.definition)

    assert refused(canary, raised).__cause__ is not None


def test_a_shard_says_nothing_of_its_rows(
    database_url: URL, shard_urls: list[URL], canary: Canary
) -> None:
    with ShardCluster(
        control=database_url, shards=named(shard_urls[:1]), groups=[kennels]
    ) as cluster:
        cluster.create_map()
        for engine in cluster.engines.values():
            Base.metadata.create_all(engine)
        with cluster.session() as session:
            session.add(Bird(id=1, note=canary.word))
            with pytest.raises(IntegrityError) as raised:
                session.flush()
            canary.show(cluster, cluster.router, session)

    refused(canary, raised)


@pytest.mark.parametrize(
    "damage",
    [
        lambda word: {"note": f"{word}\0"},
        lambda word: {"note": word, "more": {"deep": [float("nan")]}},
        lambda word: {"note": [word, 2**70]},
        lambda word: {"note": word * 100_000},
        lambda word: {"note": f"{word}\ud800"},
        lambda word: {"note": {1: word}},
        lambda word: {"note": {word}},
    ],
)
def test_events_that_cannot_be_stored_are_not_quoted(
    layer: DataLayer,
    canary: Canary,
    damage: Any,  # noqa: ANN401
) -> None:
    events = [NewEvent("canary.fed", damage(canary.word))]

    try:
        with layer.engine.begin() as conn:
            layer.events.append(conn, STREAM, events, expected_version=ANY)
    except EventDataError as error:
        canary.show_raised(error)


def test_events_of_the_wrong_shape_are_not_quoted(layer: DataLayer, canary: Canary) -> None:
    painted: Any = Painted
    with layer.engine.connect() as conn, pytest.raises(EventDataError) as raised:
        layer.events.append(conn, STREAM, [painted(canary.word)], expected_version=ANY)
    refused(canary, raised)
    stored = NewEvent("canary.painted", {"colour": canary.word})
    with layer.engine.begin() as conn:
        layer.events.append(conn, STREAM, [stored], expected_version=NEW_STREAM)
        with pytest.raises(EventShapeError) as misread:
            layer.events.decode(layer.events.read_stream(conn, STREAM)[0])
    error = refused(canary, misread)
    another = NewEvent("canary.painted", {"colour": canary.word})
    with layer.engine.connect() as conn, pytest.raises(VersionConflictError) as conflict:
        layer.events.append(conn, STREAM, [another], expected_version=NEW_STREAM)

    refused(canary, conflict)
    assert "colour" in str(error)


def test_an_aggregate_and_its_snapshot_are_not_quoted(layer: DataLayer, canary: Canary) -> None:
    with layer.engine.begin() as conn:
        cage = layer.events.load(conn, Cage, "1")
    cage.emit(Fed(canary.word))
    with layer.engine.begin() as conn:
        layer.events.save(conn, cage)
    canary.show(layer.events)

    with layer.engine.begin() as conn:
        loaded = layer.events.load(conn, Cage, "1")
        layer.events.save_snapshot(conn, loaded)
        conn.execute(
            text(
                "UPDATE datapatterns.snapshot SET"
                " state = json_build_object('colour', CAST(:word AS text))"
            ),
            {"word": canary.word},
        )
        loaded = layer.events.load(conn, Cage, "1")

    assert loaded.note == canary.word
    assert "snapshot ignored" in canary.caplog.text
    loaded.colour = canary.word  # type: ignore[assignment]  # on purpose
    with layer.engine.begin() as conn:
        loaded.emit(Fed(canary.word))
        layer.events.save(conn, loaded)
        with pytest.raises(AggregateError) as raised:
            layer.events.save_snapshot(conn, loaded)
    refused(canary, raised)


def test_a_projection_stops_before_an_event_without_quoting_it_or_its_row(
    layer: DataLayer, canary: Canary, run: Run
) -> None:
    with layer.engine.begin() as conn:
        layer.events.append(conn, STREAM, [Fed(canary.word)], expected_version=NEW_STREAM)

    with pytest.raises(ProjectionStoppedError) as raised:
        layer.projections.run(layer.engine, Birds)
    refused(canary, raised)

    with layer.engine.begin() as conn:
        canary.show(layer.projections.status(conn))
        canary.show(conn.scalar(text("SELECT error::text FROM datapatterns.projection_shard")))
    assert layer.settings.database_url
    for command in (("doctor",), ("migrate", "status"), ("migrate", "check")):
        ran = run(*command, "--json", "--database-url", shown(layer.settings.database_url))
        canary.show(ran.out, ran.err)


def test_a_cache_does_not_quote_what_it_holds_or_cannot_hold(
    layer: DataLayer, canary: Canary, redis_client: Redis
) -> None:
    assert redis_client.dbsize() == 0
    with closing(layer.cache("canary", policy=PATIENT)) as cache:

        @cache.cached
        def note(_conn: Connection, number: int) -> str | None:
            return [canary.word.encode(), canary.word * 1_000_000, canary.word][number]  # type: ignore[return-value]  # on purpose

        with pytest.raises(UncacheableValueError) as raised:
            note(0)
        assert note(1) == canary.word * 1_000_000
        assert note(2) == note(2) == canary.word
        canary.show(cache, note, cache.stats(), layer.redis)
        canary.show(cache.relay())

    refused(canary, raised)
