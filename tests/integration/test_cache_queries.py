"""Results of queries that a cache keeps: on what they depend, and which it refuses."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    CHAR,
    Date,
    Engine,
    Integer,
    Numeric,
    Text,
    TypeDecorator,
    and_,
    bindparam,
    case,
    cast,
    column,
    create_engine,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    table,
    tablesample,
    text,
    true,
    union,
    update,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased, column_property, joinedload, sessionmaker
from sqlalchemy.sql.functions import FunctionElement

from datapatterns.cache_aside import AsyncCache, Cache, query_analysis, query_plans
from datapatterns.errors import (
    MissingRightsError,
    UncacheableQueryError,
    UncacheableValueError,
)
from tests.fixtures.caches import PATIENT, open_cache
from tests.fixtures.queried_things import Base, Mark, Shelf, Thing, create_things

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def cache(engine: Engine, redis_url: str, redis_client: object) -> Iterator[Cache]:
    assert redis_client
    with open_cache(redis_url, engine, name="query") as cache:
        create_things(engine, cache)
        yield cache


def tags_of(cache: Cache, statement: Any) -> set[str]:  # noqa: ANN401 -- any query
    tags = cache._queries.asked(statement, None, None).wanted.tags  # noqa: SLF001 -- what is derived
    return {tag for tag in tags if not tag.endswith(":?")}


OTHER = aliased(Thing)
ON_SHELF = Thing.shelf_id == Shelf.id
ID, SIZE, SHELF_ID = select(Thing.id), select(Thing.size), select(Shelf.id)
A, B, CUP, LEFT = (
    Thing.kind == "a",
    Thing.kind == "b",
    Thing.kind == "cup",
    Shelf.place == "left",
)
JARS = select(Thing.id, Thing.shelf_id).where(Thing.kind == "jar")
MARKED = exists().where(Mark.thing_id == Thing.id)
DERIVED: list[tuple[Any, set[str]]] = [
    (SIZE, {"thing"}),
    (SIZE.where(Thing.id == 1), {"thing:i1"}),
    (SIZE.where(literal(1) == Thing.id, CUP), {"thing:i1"}),
    (SIZE.where(Thing.id.in_([1, 2])), {"thing:i1", "thing:i2"}),
    (SIZE.where(Thing.id.in_([])), set()),
    (SIZE.where(CUP, Thing.size > 3), {"thing.kind=scup"}),
    (SIZE.where(Thing.kind.in_(["a", "b"])), {"thing.kind=sa", "thing.kind=sb"}),
    (SIZE.where(Thing.kind.in_(["a", "b"]), Thing.shelf_id == 1), {"thing.shelf_id=i1"}),
    (SIZE.where(Thing.kind.is_(None)), {"thing.kind=N"}),
    (SIZE.where(and_(Thing.size > 1, and_(true(), A))), {"thing.kind=sa"}),
    (SIZE.where(or_(A, Thing.size == 1)), {"thing"}),
    (SIZE.where(Thing.kind != "a"), {"thing"}),
    (SIZE.where(~A), {"thing"}),
    (SIZE.where(Thing.size == 3), {"thing"}),
    (SIZE.where(func.lower(Thing.kind) == "a"), {"thing"}),
    (SIZE.where(Thing.kind == literal("a ", CHAR(2))), {"thing"}),
    (SIZE.where(Thing.shelf_id == literal(1, Numeric)), {"thing"}),
    (select(func.count()).select_from(Thing).where(A), {"thing.kind=sa"}),
    (select(Mark.word).where(Mark.thing_id == 1), {"mark"}),
    (select(Mark.word).where(Mark.thing_id == 1, Mark.word == "old"), {"mark:i1:sold"}),
    (select(Mark.word).where(Mark.thing_id.in_([1]), Mark.word == "old"), {"mark"}),
    # joins
    (ID.join(Shelf, ON_SHELF).where(LEFT), {"shelf.place=sleft", "thing"}),
    (ID.join(Shelf, and_(ON_SHELF, Shelf.id == 1)), {"shelf:i1", "thing"}),
    (SHELF_ID.join(Shelf.things).where(CUP), {"shelf", "thing.kind=scup"}),
    (SHELF_ID.outerjoin(Thing, ON_SHELF).where(Thing.kind.is_(None)), {"shelf", "thing"}),
    (SHELF_ID.outerjoin(Thing, ON_SHELF).where(Shelf.id == 1), {"shelf:i1", "thing"}),
    (SHELF_ID.join(Thing, ON_SHELF, full=True).where(Shelf.id == 1), {"shelf", "thing"}),
    (select(Thing.id, OTHER.id).where(A, OTHER.kind == "b"), {"thing.kind=sa", "thing.kind=sb"}),
    (select(Thing.id, OTHER.id).where(A, OTHER.size == Thing.size), {"thing"}),
    # queries within
    (select(JARS.subquery().c.id), {"thing.kind=sjar"}),
    (select(JARS.cte().c.id), {"thing.kind=sjar"}),
    (ID.where(Thing.id.in_(select(Mark.thing_id))), {"thing", "mark"}),
    (ID.where(A, MARKED), {"thing.kind=sa", "mark"}),
    (SHELF_ID.where(Shelf.things.any(CUP)), {"shelf", "thing.kind=scup"}),
    # What the inner query says of the outer one's table confines nothing but itself.
    (ID.where(or_(MARKED.where(A), Thing.size > 1)), {"thing", "mark"}),
    (select(select(func.max(Thing.size)).where(A).scalar_subquery()), {"thing.kind=sa"}),
    (union(ID.where(A), ID.where(B)), {"thing.kind=sa", "thing.kind=sb"}),
    (union(ID.where(A), SHELF_ID), {"thing.kind=sa", "shelf"}),
    (select(literal(1)), set()),
]


def test_a_query_depends_on_the_rows_that_it_is_confined_to(cache: Cache) -> None:
    derived = [tags_of(cache, statement) for statement, _ in DERIVED]

    assert derived == [tags for _, tags in DERIVED]


def test_rows_come_back_as_what_they_are(cache: Cache, engine: Engine) -> None:
    statement = select(
        Thing.id,
        Thing.kind,
        Thing.day,
        func.sum(Thing.size).label("total"),
        cast(literal(1), Numeric(4, 2)).label("exact"),
    ).group_by(Thing.id)
    with engine.begin() as conn:
        conn.execute(text("UPDATE thing SET day = '2026-02-03' WHERE id = 1"))
        expected = [tuple(row) for row in conn.execute(statement)]
    cache.relay()

    assert cache.query(statement) == cache.query(statement) == expected
    assert cache.stats().loads == 1
    assert (1, "cup", date(2026, 2, 3), 3, Decimal("1.00")) in expected


@dataclass(frozen=True)
class Piece:
    id: int
    size: int


def test_rows_are_made_into_what_is_wanted(cache: Cache) -> None:
    statement = select(Thing.id, Thing.size).where(Thing.kind == "cup").order_by(Thing.id)

    rows: list[Piece] = cache.query(statement, value_type=Piece)

    assert rows == cache.query(statement, value_type=Piece) == [Piece(1, 3), Piece(3, 7)]
    assert cache.query(statement) == [(1, 3), (3, 7)]


class Doubled(TypeDecorator[int]):
    """Writes the same SQL as an integer, and binds another value."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: object) -> int | None:
        del dialect
        return None if value is None else 2 * value


class Counted(Base):
    """A shelf with a query that no statement shows."""

    __table__ = Shelf.__table__
    number = column_property(select(func.count(OTHER.id)).scalar_subquery())


def test_what_the_orm_adds_is_found_by_the_server(cache: Cache) -> None:
    statement = select(Counted).where(exists().where(A))

    tags = cache._queries.asked(statement, dict, None).wanted.tags  # noqa: SLF001 -- what is derived

    assert set(tags) == {"shelf", "thing"}


def test_queries_that_differ_in_anything_have_results_of_their_own(cache: Cache) -> None:
    sizes = select(Thing.id).order_by(Thing.id)
    statements = [
        sizes.where(Thing.size > 3),
        sizes.where(Thing.size > 5),
        sizes.where(Thing.size >= 5),
        sizes.where(Thing.size.in_([3])),
        sizes.where(Thing.size.in_([3, 5])),
        sizes.where(Thing.size > literal(5, Numeric)),
        sizes.where(literal(6, Integer()) == Thing.size),
        sizes.where(literal(6, Doubled()) == Thing.size),
        sizes.where(Thing.kind == "5"),
        select(Thing.id.label("other")).order_by(Thing.id),
        select(cast(Thing.id, Text)).order_by(Thing.id),
        sizes.limit(1),
        sizes.limit(2),
    ]

    entries = {cache._queries.asked(each, None, None).wanted.entry for each in statements}  # noqa: SLF001

    assert len(entries) == len(statements)
    again = cache._queries.asked(sizes.where(Thing.size > 5), None, None)  # noqa: SLF001
    assert again.wanted.entry in entries


def test_a_result_goes_with_the_rows_that_it_shows_and_with_no_others(
    cache: Cache, engine: Engine
) -> None:
    cups = select(Thing.id).where(Thing.kind == "cup").order_by(Thing.id)

    def change(statement: str) -> list[tuple[int]]:
        with engine.begin() as conn:
            conn.execute(text(statement))
        cache.relay()
        return cache.query(cups)

    assert cache.query(cups) == [(1,), (3,)]
    loads = cache.stats().loads
    assert change("UPDATE thing SET size = 6 WHERE kind = 'jar'") == [(1,), (3,)]
    assert change("INSERT INTO mark VALUES (9, 'new')") == [(1,), (3,)]
    assert cache.stats().loads == loads
    # It leaves, and what was there before is all that tells of it.
    assert change("UPDATE thing SET kind = 'mug' WHERE id = 1") == [(3,)]
    assert change("UPDATE thing SET kind = 'cup' WHERE id = 2") == [(2,), (3,)]
    assert change("DELETE FROM thing WHERE id = 3") == [(2,)]
    assert change("TRUNCATE thing") == []


def test_sessions_that_are_watched_tell_as_well(
    engine: Engine, redis_url: str, redis_client: object
) -> None:
    assert redis_client
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    with open_cache(redis_url, engine, name="query") as cache:
        cups = select(Thing.id).where(Thing.kind == "cup")
        with pytest.raises(UncacheableQueryError, match="nobody tells of writes"):
            cache.query(cups)
        cache.watch_tags(sessions, Thing)

        assert cache.query(cups) == []
        with sessions.begin() as session:
            session.add(Thing(id=1, kind="cup", size=1))
        assert cache.query(cups) == [(1,)]
        with sessions.begin() as session:
            session.execute(text("SELECT 1"))
            session.execute(update(Thing).values(kind="jar"))
        assert cache.query(cups) == []


def test_what_a_transaction_has_written_it_sees(cache: Cache, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    cache.watch_tags(sessions, Thing)
    cups = select(Thing.id).where(Thing.kind == "cup").order_by(Thing.id)
    cache.query(cups)

    with sessions() as session:
        session.add(Thing(id=9, kind="cup", size=1))
        assert cache.query(cups, within=session) == [(1,), (3,), (9,)]
    assert cache.query(cups) == [(1,), (3,)]


def test_tags_may_be_named_by_those_who_know_better(cache: Cache) -> None:
    statement = select(func.now())

    assert cache.query(statement, tags=["hourly"]) == cache.query(statement, tags=["hourly"])
    cache.invalidate(tags=["hourly"])
    cache.query(statement, tags=["hourly"])
    assert cache.stats().loads == 2


def test_a_table_that_is_released_is_refused_from_then_on(cache: Cache, engine: Engine) -> None:
    sizes = select(Thing.size).where(Thing.kind == "cup")
    cache.query(sizes)
    with engine.begin() as conn:
        cache.release(conn, Thing)
    cache.invalidate(tags=["thing.kind=scup"])

    with pytest.raises(UncacheableQueryError, match="nobody tells of writes"):
        cache.query(sizes)


def test_a_table_that_is_captured_anew_may_tell_less(cache: Cache, engine: Engine) -> None:
    cups = select(Thing.id).where(Thing.kind == "cup").order_by(Thing.id)
    cache.query(cups)
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.cache_capture SET tag_columns = '{shelf_id}'"))
        conn.execute(text("INSERT INTO thing (id, kind, size) VALUES (8, 'cup', 1)"))
    cache.invalidate(tags=["thing.kind=scup"])

    assert cache.query(cups) == [(1,), (3,), (8,)]
    assert tags_of(cache, cups) == {"thing"}


class utc_now(FunctionElement[Any]):  # noqa: N801 -- a function's name
    type = Date()
    inherit_cache = True


@compiles(utc_now)
def _(_element: object, _compiler: object, **_: object) -> str:
    return "current_date"


COUNT = select(func.count())
SALES: Any = select(column("n")).select_from(table("a_view", column("n")))
REFUSED: list[tuple[Any, str]] = [
    (text("SELECT 1"), "no SELECT"),
    (text("SELECT 1 AS n").columns(column("n")), "no SELECT"),
    (update(Thing).values(size=1), "no SELECT"),
    (ID.where(text("size > 1")), "SQL text"),
    (ID.where(Thing.day == literal_column("'today'::date")), "SQL text"),
    (ID.prefix_with("DISTINCT"), "SQL text"),
    (ID.where(Thing.day < func.now()), "now"),
    (ID.where(Thing.day < func.current_date()), "current time"),
    (ID.where(Thing.day < utc_now()), "construct of yours"),
    (ID.where(Thing.day == "today"), "the server says: operator does not exist"),
    (ID.where(Thing.day == literal("today", Date)), "time given as text"),
    (ID.where(Thing.day == cast(literal("today"), Date)), "date_in|may return"),
    (ID.where(Thing.day == func.date("today")), "may return"),
    (ID.order_by(func.random()), "random"),
    (select(func.nextval("a_sequence")), "nextval"),
    (ID.with_for_update(), "FOR UPDATE"),
    (select(ID.with_for_update().subquery().c.id), "FOR UPDATE"),
    (COUNT.select_from(tablesample(Thing.__table__, 10)), "TABLESAMPLE"),
    (select(literal_column("ctid")).select_from(Thing), "SQL text"),
    (select(table("thing", column("xmin")).c.xmin), "system column"),
    (SALES, "a_view is a view"),
    (COUNT.select_from(table("kept_view")), "materialized view"),
    (COUNT.select_from(table("pg_class", schema="pg_catalog")), "table of the system"),
    (COUNT.select_from(table("secret")), "row level security"),
    (COUNT.select_from(table("parent")), "heirs"),
    (COUNT.select_from(table("part_1")), "a partition"),
    (COUNT.select_from(table("a_sequence")), "a sequence"),
    (COUNT.select_from(table("not_there")), "does not exist"),
    (COUNT.select_from(table("untold")), "nobody tells of writes to public.untold"),
    (select(func.reads()), "reads"),
    (select(Thing), "a mapped class"),
    (select(Shelf.id).options(joinedload(Shelf.things)), "options of loaders"),
    (ID.execution_options(schema_translate_map={None: "other"}), "schema_translate_map"),
    (ID.where(Thing.kind == bindparam("x", object(), type_=Text())), "no certain name"),
]


def test_what_no_write_would_tell_of_is_refused(cache: Cache, engine: Engine) -> None:
    with engine.begin() as conn:
        for statement in (
            "CREATE VIEW a_view AS SELECT 1 AS n",
            "CREATE MATERIALIZED VIEW kept_view AS SELECT 1 AS n",
            "CREATE TABLE secret (n int)",
            "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
            "CREATE TABLE parent (n int)",
            "CREATE TABLE child () INHERITS (parent)",
            "CREATE TABLE untold (n int)",
            "CREATE TABLE whole (n int) PARTITION BY LIST (n)",
            "CREATE TABLE part_1 PARTITION OF whole FOR VALUES IN (1)",
            "CREATE SEQUENCE a_sequence",
            "CREATE FUNCTION reads() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1 FROM thing'",
        ):
            conn.execute(text(statement))
    reasons = [(_refusal(cache, statement), reason) for statement, reason in REFUSED]

    assert [pair for pair in reasons if not re.search(pair[1], pair[0])] == []


def _refusal(cache: Cache, statement: Any) -> str:  # noqa: ANN401 -- any query
    try:
        cache.query(statement)
    except UncacheableQueryError as refusal:
        return str(refusal)
    return f"not refused: {statement}"


ALLOWED: list[Any] = [
    select(func.count(), func.coalesce(func.max(Thing.size), 0)).select_from(Thing),
    select(func.concat(Thing.kind, "-", Thing.id), func.to_char(Thing.day, "YYYY")),
    select(func.jsonb_agg(Thing.kind), func.array_agg(Thing.id)),
    select(case((Thing.size > 3, "large"), else_="small"), func.extract("year", Thing.day)),
    select(func.row_number().over(order_by=Thing.id), Thing.id).limit(2),
    select(func.generate_series(1, 3)),
    select(Thing.id).where(Thing.day >= date(2026, 1, 1)),
    select(func.unnest(func.array_agg(Thing.id))),
]


def test_much_else_is_not(cache: Cache, engine: Engine) -> None:
    with engine.connect() as conn:
        for statement in ALLOWED:
            expected = [tuple(row) for row in conn.execute(statement)]
            assert cache.query(statement) == cache.query(statement) == expected


def test_a_type_that_comes_back_as_another_has_to_be_named(cache: Cache) -> None:
    with pytest.raises(UncacheableValueError, match="value_type"):
        cache.query(select(func.trunc(cast(literal(1), Numeric))))


@pytest.mark.usefixtures("cache")
def test_a_role_without_temporary_views_is_told(engine: Engine, redis_url: str) -> None:
    with engine.begin() as conn:
        name = conn.scalar(text("SELECT quote_ident(current_database())"))
        conn.execute(text("CREATE ROLE asks_nothing LOGIN PASSWORD 'x'"))
        conn.execute(text(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"))
    narrow = create_engine(engine.url.set(username="asks_nothing", password="x"))
    try:
        with (
            open_cache(redis_url, narrow, PATIENT, name="query") as cache,
            pytest.raises(MissingRightsError, match="GRANT TEMPORARY"),
        ):
            cache.query(ID)
    finally:
        narrow.dispose()
        with engine.begin() as conn:
            conn.execute(text("DROP ROLE asks_nothing"))


def test_values_that_are_equal_in_the_database_without_being_identical_confine_nothing(
    engine: Engine, redis_url: str
) -> None:
    old = select(Mark.word).where(Mark.thing_id == 1, Mark.word == "old")
    Base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE thing ALTER COLUMN kind TYPE character(9)"))
        conn.execute(text("ALTER TABLE mark ALTER COLUMN thing_id TYPE numeric"))

    with open_cache(redis_url, engine, name="query") as cache:
        cache.watch_tags(sessionmaker(engine), Thing, Mark)
        assert (tags_of(cache, ID.where(CUP)), tags_of(cache, old)) == ({"thing"}, {"mark"})


def test_one_plan_serves_queries_that_differ_in_values_only(
    cache: Cache, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(size: int) -> list[tuple[int]]:
        return cache.query(ID.where(Thing.size == size, Thing.kind.in_(["cup"] * size)))

    asked = list[object]()
    original = query_analysis.read_tables

    def read_tables(*given: Any) -> Any:  # noqa: ANN401 -- as it is
        asked.append(given)
        return original(*given)

    monkeypatch.setattr(query_plans, "read_tables", read_tables)

    assert [ask(3), ask(7), ask(8)] == [[(1,)], [(3,)], []]
    assert len(asked) == 1
    views = text("SELECT count(*) FROM pg_views WHERE viewname = 'datapatterns_cached_query'")
    with engine.connect() as conn:
        assert conn.scalar(views) == 0


def test_queries_are_read_by_tasks_as_well(cache: Cache, engine: Engine, redis_url: str) -> None:
    cups = ID.where(CUP).order_by(Thing.id)

    async def read() -> None:
        async_engine = create_async_engine(engine.url)
        other = AsyncCache(redis_url, async_engine, name="query", policy=PATIENT)
        try:
            assert await other.query(cups) == await other.query(cups) == [(1,), (3,)]
            assert await other.query(cups, value_type=dict) == [{"id": 1}, {"id": 3}]
            async with async_engine.connect() as conn:
                assert await other.query(cups, within=conn) == [(1,), (3,)]
            with pytest.raises(UncacheableQueryError, match="now"):
                await other.query(ID.where(Thing.day < func.now()))
            assert other.stats().loads == 2
        finally:
            await other.close()
            await async_engine.dispose()

    asyncio.run(read())
    assert cache.query(cups) == [(1,), (3,)]
    assert cache.stats().loads == 0
