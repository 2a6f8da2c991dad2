"""Verify a part of a view: a range of its keys, a sample of its groups."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    Label,
    bindparam,
    column,
    func,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy.types import NullType

from datapatterns.errors import ViewSampleError
from datapatterns.materialized_view import DifferenceKind, MaterializedView, Views
from datapatterns.materialized_view.part import grouped_columns
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    create,
    create_tables,
    largest_lines,
    run,
    weekly_sales,
)

pytestmark = pytest.mark.postgres

GROUPS = 200
WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
ROWS = MaterializedView("rows_of_lines", select(Line.week, Line.cents, Line.weight))
VIEWS = Views([WEEKLY, LARGEST, ROWS])


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """Two hundred weeks, one without a number and some with two departments."""
    with engine.begin() as conn:
        create_tables(conn)
    run(
        engine,
        "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
        "INSERT INTO line SELECT g, nullif(g % 200, 0), 1 + (g / 200) % 2, g, g / 4."
        " FROM generate_series(1, 1000) g",
    )
    create(engine, *VIEWS.declared)
    return engine


def break_group(engine: Engine, week: str) -> None:
    """Let the view count one cent too many in a week."""
    run(
        engine,
        "UPDATE datapatterns.weekly_sales_stored SET measure_0_sum = measure_0_sum + 1"  # noqa: S608
        f" WHERE key_0 {week}",
    )


def verify(
    engine: Engine, view: MaterializedView, where: ColumnElement[bool] | None = None
) -> tuple[set[Any], int]:
    """Return the weeks of the rows that differ, and how many were compared."""
    found = VIEWS.verify(engine, view, where=where)
    return {one.row["week"] for one in found.differences}, found.rows


def test_only_the_rows_of_a_condition_are_compared(shop: Engine) -> None:
    break_group(shop, "= 7")

    at = WEEKLY.c.week
    assert verify(shop, WEEKLY, where=at.between(1, 6)) == (set(), 12)
    assert verify(shop, WEEKLY, where=at.between(7, 8)) == ({7}, 4)
    assert verify(shop, WEEKLY, where=at.is_(None)) == (set(), 2)
    assert verify(shop, WEEKLY, where=(at < 10) & WEEKLY.c.department.is_(None)) == ({7}, 9)
    assert verify(shop, WEEKLY) == ({7}, 2 * GROUPS)


def test_a_condition_may_name_columns_and_leave_types_to_the_database(shop: Engine) -> None:
    week = column("week").op(">=")(bindparam(None, "199", NullType()))

    assert verify(shop, WEEKLY, where=week) == (set(), 2)


def test_samples_of_all_seeds_together_find_what_one_may_miss(shop: Engine) -> None:
    break_group(shop, "IS NULL")

    found = [VIEWS.verify(shop, WEEKLY, sample=0.1, seed=seed) for seed in range(40)]

    finders = [one for one in found if one.differences]
    assert 0 < len(finders) < 40
    for one in finders:
        assert {d.row["week"] for d in one.differences} == {None}
        assert {d.kind for d in one.differences} == set(DifferenceKind)
    assert all(one.share == 0.1 for one in found)
    assert [one.seed for one in found] == [*range(40)]
    # Four hundred groups, of which forty are expected in each.
    assert 30 < sum(one.rows for one in found) / 40 < 50


def test_the_same_seed_compares_the_same_groups(shop: Engine) -> None:
    first = VIEWS.verify(shop, WEEKLY, sample=0.3, seed=5)
    run(shop, "UPDATE line SET cents = cents + 1")

    again = VIEWS.verify(shop, WEEKLY, sample=0.3, seed=5)

    assert (first.matches, again.matches, again.rows) == (True, True, first.rows)


def test_a_sample_can_be_a_number_of_rows(shop: Engine) -> None:
    some = VIEWS.verify(shop, WEEKLY, sample=100, seed=1)
    all_of_them = VIEWS.verify(shop, WEEKLY, sample=10**9)
    few = VIEWS.verify(shop, WEEKLY, where=WEEKLY.c.week < 6, sample=5, seed=2)

    assert some.share == 0.25
    assert 50 < some.rows < 150
    assert (all_of_them.share, all_of_them.rows) == (1.0, 400)
    assert few.share == 0.5
    assert few.rows < 10


def test_an_empty_view_can_be_sampled(shop: Engine) -> None:
    run(shop, "TRUNCATE line")

    found = VIEWS.verify(shop, WEEKLY, sample=10)

    assert (found.matches, found.rows, found.share) == (True, 0, 1.0)


def test_rows_without_groups_are_sampled_one_by_one(shop: Engine) -> None:
    run(shop, "UPDATE datapatterns.rows_of_lines_stored SET key_1 = 0 WHERE key_0 = 3")

    parts = [VIEWS.verify(shop, ROWS, sample=0.5, seed=seed) for seed in range(10)]

    assert all(one.rows < 1000 for one in parts)
    assert any(not one.matches for one in parts)


def test_equal_keys_that_are_written_differently_are_in_one_sample(shop: Engine) -> None:
    scaled = MaterializedView(
        "weights", select(Line.weight, func.count().label("n")).group_by(Line.weight)
    )
    run(shop, "UPDATE line SET weight = 1.0 WHERE week = 1")
    create(shop, scaled)
    run(shop, "UPDATE line SET weight = 1.00 WHERE week = 1 AND id < 500")

    for seed in range(10):
        assert Views([scaled]).verify(shop, scaled, sample=0.5, seed=seed).matches


def test_keys_without_a_hash_cannot_be_sampled(shop: Engine) -> None:
    run(shop, "ALTER TABLE line ADD bits bit(3)")
    bits: Label[str] = literal_column("line.bits").label("bits")
    view = MaterializedView("bits", select(bits).select_from(Line).group_by(bits))
    mixed = MaterializedView("mixed", select(bits, Line.week).group_by(bits, Line.week))
    create(shop, view, mixed)

    with pytest.raises(ViewSampleError, match="condition"):
        Views([view]).verify(shop, view, sample=0.5)
    assert Views([view]).verify(shop, view).matches
    assert Views([mixed]).verify(shop, mixed, sample=0.5).matches


@pytest.mark.parametrize("sample", [0.0, -0.5, 1.5, 0, -3, float("nan")])
def test_what_is_no_sample_is_refused(engine: Engine, sample: float) -> None:
    with pytest.raises(ValueError, match="neither a share"):
        VIEWS.verify(engine, WEEKLY, sample=sample)


def test_what_is_no_part_of_a_view_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no column 'product_id'; it has: week"):
        VIEWS.verify(engine, WEEKLY, where=Line.product_id == 1)
    with pytest.raises(TypeError, match="leave out queries"):
        VIEWS.verify(engine, WEEKLY, where=WEEKLY.c.week.in_(select(Line.week)))
    with pytest.raises(ValueError, match="no seed"):
        VIEWS.verify(engine, WEEKLY, seed=-1)


HALF = Line.cents / 2


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        (weekly_sales(), ["week", "department"]),
        (select(func.sum(Line.cents).label("a"), HALF.label("b")).group_by(HALF), ["b"]),
        (select(Line.week, Line.cents), ["week", "cents"]),
        (select(func.count().label("n")), ["n"]),
        (select(func.count().label("n")).group_by(Line.week), ["n"]),
    ],
    ids=["columns", "an_expression", "no_groups", "one_group", "groups_that_are_not_shown"],
)
def test_the_columns_of_a_key_are_found(query: AnySelect, keys: list[str]) -> None:
    columns = [str(name) for name in query.selected_columns.keys()]  # noqa: SIM118

    assert grouped_columns(query, columns) == keys


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_whatever_the_sample_a_right_view_matches_and_a_wrong_row_shows_itself_only_in_it(
    shop: Engine, share: float, seed: int
) -> None:
    run(shop, "UPDATE datapatterns.weekly_sales_stored SET rows = rows + 1 WHERE key_0 % 2 = 0")

    found = VIEWS.verify(shop, WEEKLY, sample=share, seed=seed, limit=10_000)
    run(shop, "UPDATE datapatterns.weekly_sales_stored SET rows = rows - 1 WHERE key_0 % 2 = 0")

    missing = {
        (d.row["week"], d.row["department"])
        for d in found.differences
        if d.kind is DifferenceKind.MISSING
    }
    unexpected = {
        (d.row["week"], d.row["department"])
        for d in found.differences
        if d.kind is DifferenceKind.UNEXPECTED
    }
    assert missing == unexpected
    assert all(week is not None and week % 2 == 0 for week, _ in missing)
    assert len(missing) <= found.rows
    with shop.connect() as conn:
        row = func.row(literal(seed, BigInteger), WEEKLY.c.week, WEEKLY.c.department)
        hashed = func.hash_record_extended(row, seed).bitwise_and(2**32 - 1)
        even = WEEKLY.c.week % 2 == 0
        expected = conn.scalar(
            select(func.count())
            .select_from(WEEKLY.table)
            .where(hashed < round(share * 2**32), even)
        )
    assert len(missing) == expected


def test_a_range_of_keys_reads_no_more_than_its_rows(shop: Engine) -> None:
    run(shop, "CREATE INDEX line_week ON line (week)", "ANALYZE line")
    with shop.connect() as conn:
        conn.execute(text("SET LOCAL enable_seqscan = off"))
        plan = "\n".join(
            conn.scalars(
                text(
                    "EXPLAIN SELECT * FROM datapatterns.weekly_sales_definition"
                    " WHERE week BETWEEN 3 AND 4"
                )
            )
        )

    assert "Index Cond: ((week >= 3) AND (week <= 4))" in plan
