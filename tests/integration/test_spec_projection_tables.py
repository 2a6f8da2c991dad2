"""Tables of every form under a specification: none of them makes wrong rows look right."""

# ruff: noqa: ARG001 -- projectors leave out what they may

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Computed,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    UniqueConstraint,
    delete,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from datapatterns.cqrs import RedisProjection, on
from datapatterns.event_sourcing import EventTypes, RecordedEvent
from datapatterns.testing import DerivedTable, ProjectionSpec, SpecError

pytestmark = pytest.mark.postgres

types = EventTypes()
Events = Sequence[RecordedEvent]


@types.event("table.counted")
@dataclass(frozen=True)
class Counted:
    number: int


METADATA = MetaData()
KEYLESS = Table("keyless", METADATA, Column("n", Integer))
PLAIN = Table("plain", METADATA, Column("n", Integer, primary_key=True))
ONCE = Table(
    "once",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("n", Integer),
    UniqueConstraint("n", deferrable=True, initially="DEFERRED"),
)
PART = Table(
    "part",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("plain", Integer, ForeignKey("plain.n")),
)
LISTED = Table(
    "listed", METADATA, Column("key", ARRAY(Integer), primary_key=True), Column("found", JSON)
)
DOUBLE = Table(
    "double",
    METADATA,
    Column("n", Integer, primary_key=True),
    Column("twice", Integer, Computed("n * 2", persisted=True)),
)


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    METADATA.create_all(engine)
    with engine.connect() as conn:
        yield conn


def numbers(events: Events) -> list[int]:
    return [event.data["number"] for event in events]


def test_rows_that_are_alike_count_where_there_is_no_key(conn: Connection) -> None:
    def three(conn: Connection, events: Events) -> None:
        conn.execute(delete(KEYLESS))
        conn.execute(insert(KEYLESS).values([{"n": 1}] * 3))

    spec = ProjectionSpec(three, conn, into=[KEYLESS], types=types).given(Counted(1))

    spec.then_rows({"n": 1}, {"n": 1}, {"n": 1})
    with pytest.raises(SpecError, match="the rows are others"):
        spec.then_rows({"n": 1})


def test_a_deferred_constraint_is_not_put_off_for_ever(conn: Connection) -> None:
    def twice(conn: Connection, events: Events) -> None:
        put = insert(ONCE).on_conflict_do_nothing(index_elements=["id"])
        for number in numbers(events):
            conn.execute(put.values(id=number, n=1))

    spec = ProjectionSpec(twice, conn, into=[ONCE], types=types)

    spec.given(Counted(1)).then_rows({"id": 1, "n": 1})
    with pytest.raises(SpecError, match="once_n_key"):
        spec.given(Counted(1), Counted(2)).then_rows({"n": 1}, {"n": 1})


def test_tables_that_refer_to_each_other_are_emptied_in_their_order(conn: Connection) -> None:
    conn.execute(insert(PLAIN).values(n=7))
    conn.execute(insert(PART).values(id=7, plain=7))

    def both(conn: Connection, events: Events) -> None:
        for number in numbers(events):
            conn.execute(insert(PLAIN).values(n=number).on_conflict_do_nothing())
            conn.execute(insert(PART).values(id=1, plain=number).on_conflict_do_nothing())

    spec = ProjectionSpec(both, conn, into=[PLAIN, PART], types=types).given(Counted(1))

    spec.then_rows({"n": 1}, into=PLAIN).then_rows({"id": 1, "plain": 1}, into=PART)


def test_a_table_that_nobody_writes_is_not_empty_by_right(conn: Connection) -> None:
    def put(conn: Connection, events: Events) -> None:
        conn.execute(insert(PLAIN).values(n=1).on_conflict_do_nothing())

    spec = ProjectionSpec(put, conn, into=[PLAIN], types=types).given(Counted(1))

    with pytest.raises(ValueError, match="does not write part, but plain"):
        spec.then_rows(into=PART)


def test_keys_may_be_arrays_and_columns_json(conn: Connection) -> None:
    def put(conn: Connection, events: Events) -> None:
        for number in numbers(events):
            row = {"key": [number], "found": {"n": [number]}}
            conn.execute(insert(LISTED).values(row).on_conflict_do_nothing())

    ProjectionSpec(put, conn, into=[LISTED], types=types).given(Counted(1), Counted(2)).then_rows(
        {"key": [1], "found": {"n": [1]}}, {"key": [2], "found": {"n": [2]}}
    )


def test_a_projector_that_commits_is_told(conn: Connection) -> None:
    def put(conn: Connection, events: Events) -> None:
        conn.execute(insert(PLAIN).values(n=1).on_conflict_do_nothing())
        conn.commit()

    with pytest.raises(SpecError, match="has ended the transaction"):
        ProjectionSpec(put, conn, into=[PLAIN], types=types).given(Counted(1)).then_rows({"n": 1})


def test_a_projector_that_has_not_run_is_told(conn: Connection) -> None:
    async def later(conn: Connection, events: Events) -> None:
        conn.execute(insert(PLAIN).values(n=1))

    def slowly(conn: Connection, events: Events) -> Any:  # noqa: ANN401 -- a generator
        yield conn.execute(insert(PLAIN).values(n=1))

    for projector in later, slowly:
        with pytest.raises(SpecError, match="nothing of it has run"):
            ProjectionSpec(projector, conn, into=[PLAIN], types=types).given(Counted(1)).then_rows()


def test_a_handler_that_has_not_run_is_told() -> None:
    async def later(changes: Any, e: Counted) -> None:  # noqa: ANN401
        changes.put("numbers", "n", e.number)

    class Later(RedisProjection, version=1):
        @on(Counted)
        def _(self, changes: Any, e: Counted, _meta: RecordedEvent) -> object:  # noqa: ANN401
            return later(changes, e)

    with pytest.raises(SpecError, match="nothing of it has run"):
        ProjectionSpec(Later, types=types).given(Counted(1)).then_hash("numbers", {})


def test_what_the_server_computes_is_not_inserted(conn: Connection, engine: Engine) -> None:
    conn.execute(insert(PLAIN).values(n=2))
    conn.commit()
    table = DerivedTable(DOUBLE, select(PLAIN.c.n, PLAIN.c.n * 2))

    table.reset(engine)

    assert conn.execute(select(DOUBLE)).all() == [(2, 4)]
    assert table.differences(engine) == []
