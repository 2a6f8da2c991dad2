"""A refresh means by a query what it meant when the view was created, whatever a session sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import pytest
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    cast,
    create_engine,
    func,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT

from datapatterns.materialized_view import MaterializedView, Strategy
from datapatterns.materialized_view.replacing import replace_view
from tests.fixtures.view_tables import AnySelect, create, run, verify

event = Table(
    "event",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("number", Integer),
    Column("at", DateTime(timezone=True)),
    Column("day", Date),
    Column("word", String),
    Column("name", CITEXT),
    Column("alias", CITEXT),
    schema="app",
)
half = func.half(event.c.number)
NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001 -- which zone is meant is what this is about


class Case(NamedTuple):
    """A query whose meaning a setting decides, and how a refresher has that one."""

    query: AnySelect
    otherwise: str
    strategy: Strategy


CASES = {
    "function": Case(
        select(half.label("half"), func.max(event.c.id).label("last")).group_by(half),
        "search_path = other, public",
        Strategy.GROUPS,
    ),
    "zone": Case(
        select(event.c.number, func.max(event.c.at).label("last"))
        .where(event.c.at >= NAIVE)
        .group_by(event.c.number),
        "TimeZone = 'America/New_York'",
        Strategy.GROUPS,
    ),
    "date": Case(
        select(event.c.number, func.max(event.c.day).label("last"))
        .where(event.c.day < literal_column("'01/03/2024'"))
        .group_by(event.c.number),
        "DateStyle = 'ISO, DMY'",
        Strategy.GROUPS,
    ),
    "backslash-groups": Case(
        select(event.c.number, func.max(event.c.word).label("last"))
        .where(event.c.word == r"a\b")
        .group_by(event.c.number),
        "standard_conforming_strings = off",
        Strategy.GROUPS,
    ),
    "backslash-counting": Case(
        select(event.c.number, func.count().label("times"))
        .where(event.c.word == r"a\b")
        .group_by(event.c.number),
        "standard_conforming_strings = off",
        Strategy.COUNTING,
    ),
    "operator-groups": Case(
        select(event.c.name, func.max(event.c.id).label("last"))
        .where(event.c.name == event.c.alias)
        .group_by(event.c.name),
        "search_path = pg_catalog",
        Strategy.GROUPS,
    ),
    "operator-counting": Case(
        select(event.c.name, func.count().label("times"))
        .where(event.c.name == event.c.alias)
        .group_by(event.c.name),
        "search_path = pg_catalog",
        Strategy.COUNTING,
    ),
}
WRITES = (
    (
        "INSERT INTO app.event SELECT 100 + g, g,"
        " '2023-12-31 12:00+00'::timestamptz + g * '1h'::interval, '2023-12-31'::date + 7 * g,"
        " CASE WHEN g % 2 = 0 THEN E'a\\\\b' ELSE 'ab' END, 'NAME',"
        " 'Name' FROM generate_series(1, 20) g"
    ),
    "UPDATE app.event SET number = number + 1 WHERE id < 5",
    "DELETE FROM app.event WHERE id = 10",
)


@pytest.fixture(autouse=True)
def tables(engine: Engine) -> None:
    run(
        engine,
        "CREATE SCHEMA app",
        "CREATE SCHEMA other",
        "CREATE EXTENSION citext SCHEMA app",
        "CREATE FUNCTION app.half(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 2'",
        "CREATE FUNCTION other.half(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 3'",
        "CREATE TABLE app.event (id int PRIMARY KEY, number int, at timestamptz, day date,"
        " word text, name app.citext, alias app.citext)",
        "INSERT INTO app.event SELECT g, g,"
        " '2024-01-01 00:00+00'::timestamptz + g * '1h'::interval, '2024-01-01'::date + g,"
        " E'a\\\\b', 'name', 'NAME' FROM generate_series(1, 20) g",
    )


@pytest.fixture
def home(engine: Engine) -> Iterator[Engine]:
    """An engine whose sessions have the settings that views are created under."""
    options = "-csearch_path=app,public -cTimeZone=UTC -cDateStyle=ISO,MDY"
    with with_options(engine, options) as made:
        yield made


@contextmanager
def with_options(engine: Engine, options: str) -> Iterator[Engine]:
    made = create_engine(engine.url, connect_args={"options": options})
    try:
        yield made
    finally:
        made.dispose()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("operation", ["refresh", "rebuild"])
def test_a_refresher_with_other_settings_means_the_same(
    engine: Engine, home: Engine, name: str, operation: str
) -> None:
    case = CASES[name]
    view = MaterializedView("kept", case.query)
    create(home, view)
    run(engine, *WRITES)

    with home.begin() as conn:
        assert view.explain(conn).strategy is case.strategy
        conn.execute(text(f"SET LOCAL {case.otherwise}"))
        wanted = _settings(conn)
        getattr(view, operation)(conn)
        assert _settings(conn) == wanted, "the caller's settings are its own"

    with home.connect() as conn:
        rows, fresh = conn.execute(select(view.table)).all(), conn.execute(case.query).all()
        assert len(rows) == len(fresh)
        assert {*map(_folded, rows)} == {*map(_folded, fresh)}
    assert verify(home, view) == []


def test_whoever_lets_the_next_version_take_its_place_means_the_same(
    engine: Engine, home: Engine
) -> None:
    old, new = (MaterializedView("kept", CASES[name].query) for name in ("zone", "function"))
    create(home, old)
    with home.begin() as conn:
        (kept,) = (c for c in new.definition.candidates if c.explanation.strategy == "groups")
        replace_view(conn, new.definition.names, new.definition.blueprint(kept))
    for _ in range(2):
        with home.begin() as conn:
            conn.execute(text("SET LOCAL search_path = other, public"))
            new.refresh(conn)
    run(engine, *WRITES)

    with home.connect() as conn:
        now = {*conn.execute(select(new.realtime)).all()}
        assert now == {*conn.execute(CASES["function"].query).all()}


def test_a_view_that_is_written_down_anew_means_the_same(engine: Engine, home: Engine) -> None:
    case = CASES["function"]
    view = MaterializedView("kept", case.query)
    create(home, view)
    (kept,) = (c for c in view.definition.candidates if c.explanation.strategy == "groups")
    with home.begin() as conn:
        conn.execute(text(f"SET LOCAL {case.otherwise}"))
        replace_view(conn, view.definition.names, view.definition.blueprint(kept))
    run(engine, *WRITES)

    with home.connect() as conn:
        assert {*conn.execute(select(view.realtime)).all()} == {*conn.execute(case.query).all()}


@pytest.mark.parametrize("word", ["today", "TOMORROW 10:00", " now "])
@pytest.mark.parametrize("is_cast", [False, True], ids=["as it is", "cast"])
def test_a_word_that_is_another_date_each_day_is_read_once(word: str, *, is_cast: bool) -> None:
    written: ColumnElement[Any] = literal_column(f"'{word}'")
    if is_cast:
        written = cast(literal(word, String), Date)
    query = select(event.c.number, func.max(event.c.day).label("last")).group_by(event.c.number)

    assert MaterializedView("dated", query).explain().strategy is Strategy.GROUPS
    dated = MaterializedView("dated", query.where(event.c.day < written))
    assert dated.explain().strategy is Strategy.REBUILD


@pytest.mark.parametrize("aggregate", [func.count(), func.max(event.c.id)])
def test_keys_whose_type_is_compared_elsewhere_are_not_looked_for(
    engine: Engine, aggregate: object
) -> None:
    query = select(event.c.name, aggregate.label("value")).group_by(event.c.name)  # type: ignore[attr-defined]
    view = MaterializedView("named", query)
    create(engine, view)  # without app, whose = is that of the type
    run(engine, *WRITES)

    with engine.begin() as conn:
        assert view.explain(conn).strategy is Strategy.REBUILD
        view.refresh(conn)
        assert len(conn.execute(select(view.table)).all()) == 1
    assert verify(engine, view) == []


def test_names_of_a_session_that_writes_backslashes_twice_are_read_as_written(
    engine: Engine, home: Engine
) -> None:
    options = "-cstandard_conforming_strings=off -csearch_path=app,public"
    case = CASES["backslash-counting"]
    view = MaterializedView("kept", case.query)
    with with_options(engine, options) as doubling:
        create(doubling, view)
        run(engine, *WRITES)
        with doubling.begin() as conn:
            view.refresh(conn)

    with home.connect() as conn:
        rows = {*conn.execute(select(view.table)).all()}
        assert rows == {*conn.execute(case.query).all()} != set()
    assert verify(home, view) == []


def _settings(conn: Connection) -> list[tuple[object, ...]]:
    return [*map(tuple, conn.execute(text("SELECT name, setting FROM pg_settings ORDER BY 1")))]


def _folded(row: object) -> tuple[object, ...]:
    """Return the row with texts as citext compares them."""
    return tuple(v.lower() if isinstance(v, str) else v for v in row)  # type: ignore[attr-defined]
