"""What counting keeps apart, merges, and evaluates on rows that never were together."""

from typing import Any

import pytest
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    Label,
    MetaData,
    Numeric,
    String,
    Table,
    cast,
    func,
    literal_column,
    select,
    text,
    union,
    union_all,
)
from sqlalchemy.dialects.postgresql import CITEXT, DOUBLE_PRECISION, INTERVAL, JSONB

from datapatterns.materialized_view import (
    Incremental,
    MaterializedView,
    Strategy,
    counting,
    identity,
)
from tests.fixtures.view_tables import create, differences, differences_now, refresh, run, verify

metadata = MetaData()
things = Table(
    "thing",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", Integer),
    Column("word", String),
    Column("weight", Numeric),
    Column("price", Numeric(8, 2)),
    Column("label", CITEXT),
    Column("ratio", DOUBLE_PRECISION),
    Column("took", INTERVAL),
    Column("facts", JSONB),
)
NUMBERED = select(things.c.number, func.count().label("n")).group_by(things.c.number)


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    run(engine, "CREATE EXTENSION citext")
    metadata.create_all(engine)


def shown(engine: Engine, view: MaterializedView, column: str) -> list[str]:
    with engine.connect() as conn:
        written: ColumnElement[str] = literal_column(f"{column}::text").label("shown")
        return sorted(conn.scalars(select(written).select_from(view.table)))


@pytest.mark.parametrize(
    ("column", "before", "after"),
    [
        ("weight", "1.0", "1.00"),
        ("label", "ABC", "abc"),
        ("ratio", "-0", "0"),
        ("took", "24:00:00", "1 day"),
        ("facts", '{"a": 1.0}', '{"a": 1.00}'),
    ],
)
def test_values_that_are_equal_and_not_the_same_are_kept_apart(
    engine: Engine, column: str, before: str, after: str
) -> None:
    view = MaterializedView("looks", select(things.c[column]), maintain=Incremental())
    create(engine, view)
    put = text(f"INSERT INTO thing (id, {column}) VALUES (:id, '{before}'), (:id + 1, '{before}')")  # noqa: S608
    with engine.begin() as conn:
        conn.execute(put, {"id": 1})
    for settings in ("SET LOCAL timezone = 'Asia/Tokyo'", "SET LOCAL intervalstyle = 'iso_8601'"):
        with engine.begin() as conn:
            conn.execute(text(settings))
            conn.execute(text("SET LOCAL extra_float_digits = -15"))
            view.refresh(conn)
        run(engine, f"UPDATE thing SET {column} = '{after}' WHERE id = 1")  # noqa: S608

    refresh(engine, view)

    assert shown(engine, view, column) == sorted([before, after])
    with engine.begin() as conn:
        assert view.rebuild(conn).rows_changed == 0


@pytest.mark.parametrize(
    "query",
    [
        select(things.c.word),
        select(things.c.word).distinct(),
        select(things.c.word, func.count().label("n")).group_by(things.c.word),
    ],
    ids=["rows", "distinct", "groups"],
)
def test_long_texts_break_nobody(engine: Engine, query: Any) -> None:  # noqa: ANN401
    view = MaterializedView("long", query, maintain=Incremental())
    create(engine, view)
    random = "SELECT string_agg(md5(g::text || :seed), '') FROM generate_series(1, 32768) g"
    put = text(f"INSERT INTO thing (id, word) SELECT :id, ({random})")
    with engine.begin() as conn:
        for number, seed in enumerate("aab"):
            conn.execute(put, {"id": number, "seed": seed})

    refresh(engine, view)
    run(engine, "DELETE FROM thing WHERE id = 0")

    assert verify(engine, view) == []


def test_a_row_shows_as_often_as_it_occurs_and_a_distinct_one_once(engine: Engine) -> None:
    rows = MaterializedView("rows", select(things.c.number), maintain=Incremental())
    distinct = MaterializedView("one", select(things.c.number).distinct(), maintain=Incremental())
    create(engine, rows, distinct)
    seen = []
    for write in (
        "INSERT INTO thing (id, number) SELECT g, g % 2 FROM generate_series(1, 6) g",
        "DELETE FROM thing WHERE id IN (1, 2, 3)",
        "DELETE FROM thing WHERE id = 5",
    ):
        run(engine, write)
        refresh(engine, rows)
        refresh(engine, distinct)
        seen.append((shown(engine, rows, "number"), shown(engine, distinct, "number")))

    assert seen == [
        (["0", "0", "0", "1", "1", "1"], ["0", "1"]),
        (["0", "0", "1"], ["0", "1"]),
        (["0", "0"], ["0"]),
    ]


def test_branches_of_a_union_are_counted_together(engine: Engine) -> None:
    numbers = select(things.c.number.label("n"))
    both = {
        "all_of_both": union_all(numbers, select(things.c.id), select(cast(7, BigInteger))),
        "each_of_both": union(numbers, union_all(select(things.c.id), numbers)),
    }
    views = {name: MaterializedView(name, query) for name, query in both.items()}
    run(engine, "INSERT INTO thing (id, number) SELECT g, g % 3 FROM generate_series(1, 5) g")
    create(engine, *views.values())
    run(engine, "UPDATE thing SET number = id WHERE id > 3", "DELETE FROM thing WHERE id = 1")

    for name, view in views.items():
        refresh(engine, view)
        with engine.connect() as conn:
            assert view.explain(conn).strategy is Strategy.COUNTING
            assert differences(engine, view, both[name]) == 0


@pytest.mark.parametrize(
    "query",
    [
        select(func.sum(things.c.number * things.c.number).label("n")),
        select((things.c.number + things.c.number).label("n")),
        select(func.count().label("n")).where(-things.c.number * things.c.number < 0),
    ],
    ids=["sum", "key", "condition"],
)
def test_what_never_were_values_of_the_query_raises_nothing(
    engine: Engine,
    query: Any,  # noqa: ANN401
) -> None:
    view = MaterializedView("products", query, maintain=Incremental())
    create(engine, view)
    # Each of the two is too much for an integer, times or plus itself, and neither is left.
    run(engine, "INSERT INTO thing (id, number) VALUES (1, 2147483647), (2, -2147483648), (3, 5)")
    run(engine, "UPDATE thing SET number = id")

    with engine.connect() as conn:
        assert differences_now(conn, view, query) == 0
    refresh(engine, view)
    assert differences(engine, view, query) == 0


def test_a_function_of_the_same_name_is_not_trusted(engine: Engine) -> None:
    query = select(func.lower(things.c.word).label("low"))
    run(
        engine,
        "CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql IMMUTABLE"
        " AS 'SELECT (1 / length($1))::text'",
    )
    view = MaterializedView("lowered", query)
    create(engine, view)

    with engine.connect() as conn:
        assert view.explain(conn).strategy is not Strategy.COUNTING
        assert "lower" in view.explain(conn).reason


def test_a_function_of_the_same_name_that_comes_later_is_not_called(engine: Engine) -> None:
    query = select(func.lower(things.c.word).label("low"))
    view = MaterializedView("lowered", query, maintain=Incremental())
    create(engine, view)
    run(
        engine,
        "CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'x'$$",
        "INSERT INTO thing (id, word) VALUES (1, 'ABC')",
    )

    refresh(engine, view)

    assert shown(engine, view, "low") == ["abc"]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (select(func.avg(things.c.weight).label("n")), "declared precision"),
        (select((things.c.weight * 2).label("n")), "declared precision"),
        (select(things.c.number.label("n")).where(things.c.number.in_([1])), "declared so"),
    ],
    ids=["avg", "product", "identity"],
)
def test_the_server_has_the_last_word(
    engine: Engine,
    query: Any,  # noqa: ANN401
    reason: str,
) -> None:
    run(engine, "ALTER TABLE thing ALTER number TYPE numeric")
    view = MaterializedView("judged", query)
    assert view.explain().strategy is Strategy.COUNTING
    create(engine, view)

    with engine.connect() as conn:
        assert view.explain(conn).strategy is not Strategy.COUNTING
        assert reason in view.explain(conn).reason


def test_an_average_of_a_fixed_scale_forgets_what_has_gone(engine: Engine) -> None:
    query = select(func.avg(things.c.price).label("mean"))
    view = MaterializedView("means", query, maintain=Incremental())
    create(engine, view)
    for write in (
        "INSERT INTO thing (id, price) VALUES (1, 10), (2, 0.01), (3, 'NaN'), (4, 0.03)",
        "DELETE FROM thing WHERE id = 3",
        "DELETE FROM thing WHERE id = 2",
        "INSERT INTO thing (id, price) VALUES (5, 0.02), (6, 0.03)",
    ):
        run(engine, write)
        refresh(engine, view)
        assert differences(engine, view, query) == 0, write


def test_keys_may_share_a_hash(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hash(_: object) -> Label[int]:
        return literal_column("1", BigInteger).label("hash")

    monkeypatch.setattr(counting, "key_hash", no_hash)
    view = MaterializedView("numbered", NUMBERED, maintain=Incremental())
    run(engine, "INSERT INTO thing (id, number) SELECT g, g % 4 FROM generate_series(1, 9) g")
    create(engine, view)
    run(
        engine,
        "UPDATE thing SET number = NULL WHERE id = 1",
        "DELETE FROM thing WHERE number = 2",
        "INSERT INTO thing (id, number) VALUES (20, 9)",
    )

    with engine.connect() as conn:
        assert differences_now(conn, view, NUMBERED) == 0
    refresh(engine, view)
    assert differences(engine, view, NUMBERED) == 0


def test_a_refresh_finds_its_keys_by_the_index(engine: Engine) -> None:
    view = MaterializedView("numbered", NUMBERED, maintain=Incremental())
    create(engine, view)

    with engine.connect() as conn:
        assert index_of(conn, view) == ["key_hash"]


def index_of(conn: Connection, view: MaterializedView) -> list[str]:
    stored = f"datapatterns.{view.name}_stored"
    found = text(
        "SELECT a.attname FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indexrelid WHERE i.indrelid = to_regclass(:stored)"
    )
    return [*conn.scalars(found, {"stored": stored})]


OTHERS = things.alias("others")
PAIRS = (
    select(things.c.number, func.count().label("n"))
    .join(OTHERS, things.c.number == OTHERS.c.number)
    .group_by(things.c.number)
)
GUARDS: dict[str, tuple[Any, str, Any]] = {
    "correction": (counting, "_as_it_was", lambda _p, source, *_: _as_it_is(source)),
    "sign": (counting, "_product", lambda signs: func.abs(signs[0])),
}


def _as_it_is(source: Any) -> Any:  # noqa: ANN401 -- a table or an alias
    sign: Label[int] = literal_column("1", Integer).label("change_sign")
    return select(sign, *source.c).subquery("before")


@pytest.mark.parametrize("guard", GUARDS)
def test_without_the_algebra_counts_would_be_wrong(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    monkeypatch.setattr(*GUARDS[guard])
    view = MaterializedView("pairs", PAIRS, maintain=Incremental())
    create(engine, view)
    run(engine, "INSERT INTO thing (id, number) VALUES (1, 1), (2, 1)")
    refresh(engine, view)
    run(engine, "DELETE FROM thing WHERE id = 2")
    refresh(engine, view)

    assert differences(engine, view, PAIRS) != 0


def test_without_images_a_change_of_looks_would_be_missed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (counting, identity):
        monkeypatch.setattr(module, "images", lambda *_: [])
    view = MaterializedView("looks", select(things.c.weight), maintain=Incremental())
    run(engine, "INSERT INTO thing (id, weight) VALUES (1, 1.0)")
    create(engine, view)
    run(engine, "UPDATE thing SET weight = 1.00")
    refresh(engine, view)

    assert shown(engine, view, "weight") == ["1.0"]
