"""Which query is kept how, and which is refused, with the clause named."""

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Float,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    cast,
    distinct,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    select,
    text,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSON, TEXT, TIMESTAMP, distinct_on
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema

from datapatterns.errors import CaptureRefusedError, ViewChangedError, ViewDefinitionError
from datapatterns.materialized_view import Full, Incremental, MaterializedView, Strategy
from tests.fixtures.colours import Call
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    Product,
    create,
    create_tables,
    differences,
    refresh,
    run,
    weekly_sales,
)

metadata = MetaData()
visits = Table(
    "Visit %s",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at time", TIMESTAMP(timezone=True), key="at"),
    Column("name", String, key="who"),
    Column("score", Float),
    Column("claimed", Numeric),
    Column("payload", JSON),
)


@pytest.fixture(autouse=True)
def tables(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
        metadata.create_all(conn)


@pytest.mark.parametrize(
    ("query", "clause"),
    [
        (select(Line.week, func.now().label("at")), "now"),
        (select(Line.week).where(literal_column("CURRENT_DATE") > literal("2026-01-01")), "time"),
        (select(Line.week, func.random().label("r")), "volatile function random"),
        (select(Line.week, func.nextval("some_sequence").label("r")), "volatile function nextval"),
        (select(Line.week).limit(3), "LIMIT"),
        (select(Line.week).order_by(Line.week).offset(1), "LIMIT or OFFSET"),
        (select(Line.week).ext(distinct_on(Line.product_id)), "DISTINCT ON"),
        (select(Line.id, func.row_number().over().label("n")), "window"),
        (select(func.string_agg(Product.department, ",").label("all")), "string_agg"),
        (select(func.array_agg(Line.cents).label("all")), "array_agg"),
        (select(func.sum(visits.c.score).label("s")), "floating-point"),
        (select(func.to_char(visits.c.at, "YYYY").label("y")), "to_char"),
        (select(cast(visits.c.at, TEXT).label("y")), "timestamptz_out"),
        (select(func.date_trunc("week", visits.c.at).label("w")), "date_trunc"),
        (select(Line.week).with_for_update(), "FOR UPDATE"),
        (select(literal(1).label("one")), "reading no table"),
        (select(literal_column("line").label("whole")).select_from(Line), "whole row"),
        (select(Line.week).select_from(Line.__table__.tablesample(10)), "TABLESAMPLE"),
    ],
)  # fmt: skip
def test_what_depends_on_more_than_its_tables_is_refused(
    engine: Engine, query: AnySelect, clause: str
) -> None:
    run(engine, "CREATE SEQUENCE some_sequence")
    view = MaterializedView("refused", query, maintain=Full())

    with engine.begin() as conn, pytest.raises(ViewDefinitionError, match=clause):
        view.create(conn)


def test_a_count_of_no_table_is_refused(engine: Engine) -> None:
    view = MaterializedView("refused", select(func.count().label("n")))

    with engine.begin() as conn, pytest.raises(ViewDefinitionError, match="reading no table"):
        view.create(conn)


@pytest.mark.parametrize(
    "query",
    [
        select(cast(Line.week, TEXT).label("w"), func.count().label("n")).group_by(
            cast(Line.week, TEXT)
        ),
        select(func.date_trunc("week", func.timezone("UTC", visits.c.at)).label("w")),
        select(func.max(visits.c.score).label("m"), func.count(distinct(visits.c.who)).label("d")),
        select(func.sum(cast(visits.c.score, Numeric)).label("s")),
        union_all(select(Line.week), select(Line.product_id)),
    ],
)
def test_what_depends_on_its_tables_alone_is_kept(engine: Engine, query: AnySelect) -> None:
    view = MaterializedView("kept", query, maintain=Full())
    create(engine, view)
    with engine.begin() as conn:
        conn.execute(insert(Line).values(id=1, week=3, product_id=1, cents=1))
        conn.execute(insert(visits).values(id=1, at=func.now(), who="ü", score=0.1))

    refresh(engine, view)

    assert differences(engine, view, query) == 0


def test_odd_names_and_literals_are_kept(engine: Engine) -> None:
    odd = '50% \\ it\'s "x" :colon %(name)s {brace} 🧀'
    query = (
        select(visits.c.who.label('the "who" %s'), func.count().label("a:b"))
        .where(visits.c.who != odd, visits.c.who.in_(["a", "b%"]))
        .group_by(visits.c.who)
    )
    counted = MaterializedView("odd_counted", query, maintain=Incremental())
    rebuilt = MaterializedView("odd_rebuilt", query, maintain=Full())
    create(engine, counted, rebuilt)
    with engine.begin() as conn:
        names = [odd, "a", "a", "b%", None]
        conn.execute(insert(visits), [{"id": i, "who": who} for i, who in enumerate(names)])

    for view in (counted, rebuilt):
        refresh(engine, view)
        with engine.connect() as conn:
            assert set(conn.execute(select(view.table)).all()) == {("a", 2), ("b%", 1)}


def test_tables_of_one_name_in_two_schemas_are_told_apart(engine: Engine) -> None:
    archive = Line.metadata.tables["line"].to_metadata(MetaData(), schema="archive")
    query = (
        select(Line.week, func.count().label("n"), func.sum(archive.c.cents).label("cents"))
        .join(archive, archive.c.id == Line.id)
        .group_by(Line.week)
    )
    view = MaterializedView("both", query, maintain=Incremental())
    with engine.begin() as conn:
        conn.execute(CreateSchema("archive"))
        archive.create(conn)
    create(engine, view)
    run(
        engine,
        "INSERT INTO line VALUES (1, 1, 1, 10), (2, 1, 1, 20)",
        "INSERT INTO archive.line VALUES (1, 5, 5, 500), (3, 5, 5, 700)",
        "UPDATE archive.line SET id = 2 WHERE id = 3",
    )

    refresh(engine, view)

    assert differences(engine, view, query) == 0
    with engine.connect() as conn:
        assert conn.execute(select(view.table)).all() == [(1, 2, 1200)]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (weekly_sales().having(func.count() > 1), "beyond"),
        (select(Line.week).group_by(Line.week).distinct(), "beyond"),
        (select(Line.week).order_by(Line.week), "beyond"),
        (select(Line.week).group_by(Line.week / 2, Line.week), "/"),
        (select(Line.cents, func.count().label("n")).group_by(Line.week), "not grouped"),
    ],
)
def test_what_cannot_be_counted_is_kept_by_groups_and_says_why(
    query: AnySelect, reason: str
) -> None:
    explained = MaterializedView("v", query).explain()

    assert explained.strategy is Strategy.GROUPS
    assert reason in explained.reason
    assert MaterializedView("v", query, maintain=Incremental()).explain() == explained


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (weekly_sales().limit(1), "beyond"),
        (select(func.max(Line.cents).label("m")), "max"),
        (select(func.count(distinct(Line.week)).label("n")), "DISTINCT"),
        (select(func.sum(Line.cents / 2).label("n")), "/"),
        (select(func.sum(visits.c.score).label("n")), "not exact"),
        (select(func.sum(visits.c.score * 2).label("n")), "not exact"),
        (select((visits.c.score * 2).label("n")), "no exact number"),
        (select(func.avg(func.coalesce(Line.weight, 0)).label("n")), "scale may change"),
        (select(func.count().label("n")).where(1 / Line.cents > 2), "never fails"),
        (select(cast(visits.c.who, Integer).label("n")), "never fails"),
        (select(cast(Line.week, TEXT).label("n")), "never fails"),
        (select(cast(Line.weight, Integer).label("n")), "never fails"),
        (select(cast(Line.weight, Numeric(4, 2)).label("n")), "never fails"),
        (select(func.substr(visits.c.who, Line.week).label("n")), "substr"),
        (select(func.date_trunc(visits.c.who, visits.c.at).label("n")), "date_trunc"),
        (select(func.public.lower(visits.c.who).label("n")), "lower"),
        (
            select(func.count().label("n")).select_from(
                select(Line.week).where(Line.week > 1).distinct().subquery()
            ),
            "duplicates",
        ),
        (
            select(func.count().label("n")).select_from(
                select(Line.week).group_by(Line.week).subquery()
            ),
            "groups rows",
        ),
        (
            select(func.count().label("n")).select_from(
                union_all(select(Line.week), select(Line.weight)).subquery()
            ),
            "several types",
        ),
        (
            select(func.count().label("n")).join_from(
                Line, Product, Line.product_id == Product.id, isouter=True
            ),
            "outer join",
        ),
        (select(Line.week).except_(select(Line.product_id)), "EXCEPT"),
        (union_all(select(Line.week), select(Line.product_id)).limit(3), "beyond"),
        (union_all(select(Line.week), select(Line.week).distinct()), "duplicates"),
    ],
)
def test_what_can_neither_be_counted_nor_grouped_is_rebuilt_and_says_why(
    query: AnySelect, reason: str
) -> None:
    explained = MaterializedView("v", query).explain()

    assert explained.strategy is Strategy.REBUILD
    assert reason in explained.reason
    with pytest.raises(ViewDefinitionError, match=r"maintain it with"):
        MaterializedView("v", query, maintain=Incremental())


def test_what_can_be_counted_is_counted() -> None:
    view = MaterializedView("weekly_sales", weekly_sales())

    assert view.explain().strategy is Strategy.COUNTING
    assert "counting" in repr(view)
    assert MaterializedView("v", weekly_sales(), maintain=Full()).explain().strategy == "rebuild"


def test_the_server_knows_types_better_than_the_declaration(engine: Engine, call: Call) -> None:
    run(engine, 'ALTER TABLE "Visit %s" ALTER claimed TYPE money')
    query = select(func.sum(visits.c.claimed).label("n"))
    view = MaterializedView("claims", query)
    strict = MaterializedView("strict", query, maintain=Incremental())

    call(view.create)
    call(view.populate)

    assert view.explain().strategy is Strategy.COUNTING
    assert call(view.explain).strategy is Strategy.REBUILD
    assert "sum(money)" in call(view.explain).reason
    assert call(view.refresh) is not None
    with pytest.raises(ViewDefinitionError, match=r"sum\(money\)"):
        call(strict.create)


@pytest.mark.parametrize("name", ["", "1st", "Weekly", "a" * 41, "a b", 'a"b', "a;b"])
def test_a_view_has_a_plain_name(name: str) -> None:
    with pytest.raises(ViewDefinitionError, match="its name"):
        MaterializedView(name, weekly_sales())


@pytest.mark.parametrize(
    "query",
    [
        select(Line.cents + 1),
        select(Line.id.label("ü" * 32)),
    ],
)
def test_columns_have_names_of_their_own(query: AnySelect) -> None:
    with pytest.raises(ViewDefinitionError, match=r"label\(\)"):
        MaterializedView("v", query)


def test_a_taken_name_is_refused(engine: Engine) -> None:
    with (
        engine.begin() as conn,
        pytest.raises(ViewDefinitionError, match="exists already"),
    ):
        MaterializedView("event", weekly_sales()).create(conn)


def test_a_refused_table_leaves_nothing_behind(engine: Engine) -> None:
    run(engine, "ALTER TABLE product ENABLE ROW LEVEL SECURITY")
    before = inspect(engine).get_table_names(schema="datapatterns")

    with pytest.raises(CaptureRefusedError, match="row-level"), engine.begin() as conn:
        MaterializedView("weekly_sales", weekly_sales()).create(conn)

    assert inspect(engine).get_table_names(schema="datapatterns") == before


def test_values_that_cannot_be_compared_are_refused(engine: Engine) -> None:
    view = MaterializedView("v", select(visits.c.id, visits.c.payload))

    with engine.begin() as conn, pytest.raises((ViewDefinitionError, CaptureRefusedError)):
        view.create(conn)


@pytest.mark.parametrize(
    "change", ["DROP COLUMN week", "ALTER COLUMN week TYPE bigint", "ALTER COLUMN week TYPE text"]
)
def test_a_column_that_a_view_reads_can_neither_go_nor_change(engine: Engine, change: str) -> None:
    create(engine, MaterializedView("weekly_sales", weekly_sales()))

    with engine.begin() as conn, pytest.raises(DBAPIError):
        conn.execute(text(f"ALTER TABLE line {change}"))


def test_a_renamed_table_makes_a_view_refuse(engine: Engine) -> None:
    view = MaterializedView("weekly_sales", weekly_sales())
    create(engine, view)
    run(engine, "ALTER TABLE product RENAME TO article")

    with engine.connect() as conn, pytest.raises(ViewChangedError):
        view.refresh(conn)


def test_the_view_is_there_for_selects(engine: Engine) -> None:
    view = MaterializedView("weekly_sales", weekly_sales())
    run(engine, "INSERT INTO product VALUES (1, 'dairy')")
    run(engine, "INSERT INTO line VALUES (1, 7, 1, 250)")
    create(engine, view)

    with engine.connect() as conn:
        rows: list[Any] = [*conn.execute(select(view.c.week, view.c.cents))]

    assert rows == [(7, 250)]
