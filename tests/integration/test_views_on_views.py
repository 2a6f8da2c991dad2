"""Views that are built upon views: exact, level by level, and as old as the oldest below them."""

from threading import Thread

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    select,
    text,
)

from datapatterns.change_log import ChangeLog, ChangeToken, change_token
from datapatterns.errors import (
    CaptureRefusedError,
    SnapshotOutdatedError,
    ViewBehindError,
    ViewDefinitionError,
    ViewInUseError,
    ViewNotPopulatedError,
)
from datapatterns.materialized_view import Incremental, MaterializedView, Strategy, Views
from datapatterns.testing import ManualClock, halted_at
from tests.fixtures.view_tables import (
    Line,
    Product,
    create_tables,
    differences,
    largest_lines,
    run,
    weekly_sales,
)

pytestmark = pytest.mark.postgres

WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
BY_WEEK = MaterializedView(
    "by_week",
    select(WEEKLY.c.week, func.sum(WEEKLY.c.cents).label("cents")).group_by(WEEKLY.c.week),
)
# Two parents, of the same tables: a diamond.
BOTH = MaterializedView(
    "both",
    select(
        WEEKLY.c.department,
        func.sum(WEEKLY.c.cents).label("cents"),
        func.max(LARGEST.c.largest).label("largest"),
    )
    .join(LARGEST.table, LARGEST.c.department.is_not_distinct_from(WEEKLY.c.department))
    .group_by(WEEKLY.c.department),
)
TOP = MaterializedView("top", select(func.max(BY_WEEK.c.cents).label("most")))
VIEWS = Views([TOP, BOTH, BY_WEEK, WEEKLY, LARGEST])
STOCK = (
    "INSERT INTO product VALUES (1, 'dairy'), (2, NULL), (3, 'bakery')",
    "INSERT INTO line SELECT g, g % 5, 1 + g % 3, 10 * g, g / 4. FROM generate_series(1, 60) g",
)
# What the top shows, from scratch.
TRUTH = select(
    func.max(
        select(func.sum(Line.cents).label("cents"))
        .where(Line.product_id.in_(select(Product.id)))
        .group_by(Line.week)
        .subquery()
        .c.cents
    ).label("most")
)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, *STOCK)
    with engine.begin() as conn:
        VIEWS.create(conn)
    return engine


@pytest.fixture
def filled(shop: Engine) -> Engine:
    VIEWS.populate(shop)
    return shop


def write(engine: Engine, statement: str = "UPDATE line SET cents = cents + 1") -> ChangeToken:
    with engine.begin() as conn:
        conn.execute(text(statement))
        return change_token(conn)


def wrong(engine: Engine) -> dict[str, int]:
    """Return how many rows each view gets wrong, of what it reads."""
    found = {v.name: differences(engine, v, v.definition.query) for v in VIEWS.declared}
    return {name: count for name, count in found.items() if count}


CHANGES = (
    "INSERT INTO line VALUES (100, 7, 1, 10000, 1)",
    "UPDATE line SET week = NULL WHERE week = 1",
    "DELETE FROM line WHERE week = 7",
    "UPDATE product SET department = 'x' WHERE id < 3",
    "DELETE FROM product WHERE id = 3",
    "TRUNCATE line",
    "INSERT INTO line VALUES (1, 1, 1, 5, 1)",
)


def test_views_on_views_follow_every_change_level_by_level(filled: Engine) -> None:
    for change in CHANGES:
        run(filled, change)
        VIEWS.refresh(filled)

        assert wrong(filled) == {}
        assert differences(filled, TOP, TRUTH) == 0


def test_they_are_created_and_dropped_in_order(shop: Engine) -> None:
    with shop.connect() as conn, pytest.raises(ViewInUseError, match="both, by_week"):
        WEEKLY.drop(conn)
    with shop.begin() as conn:
        VIEWS.drop(conn)
        left = conn.scalar(text("SELECT count(*) FROM datapatterns.captured_table"))

    assert left == 0


def test_what_is_below_is_filled_first(shop: Engine) -> None:
    with shop.connect() as conn, pytest.raises(ViewNotPopulatedError, match="by_week"):
        TOP.populate(conn)

    assert [*VIEWS.populate(shop, ["top"])] == ["weekly_sales", "by_week", "top"]
    assert differences(shop, TOP, TRUTH) == 0


def test_the_reason_for_rebuilding_is_the_view_below(shop: Engine) -> None:
    mapped = Table(
        "weekly_sales",
        MetaData(schema="datapatterns"),
        Column("department", Text),
        Column("cents", Integer),
    )
    query = select(mapped.c.department, func.count().label("n")).group_by(mapped.c.department)
    view = MaterializedView("mapped", query)

    with shop.begin() as conn:
        view.create(conn)
        found = view.explain(conn)
    with (
        shop.connect() as conn,
        pytest.raises(ViewDefinitionError, match="built upon the view weekly_sales"),
    ):
        MaterializedView("mapped_too", query, maintain=Incremental()).create(conn)
    with shop.connect() as conn, pytest.raises(CaptureRefusedError):
        MaterializedView("of_now", select(WEEKLY.realtime.c.week)).create(conn)

    with shop.connect() as conn:
        of_table = BY_WEEK.explain(conn)
    assert found == of_table
    assert (found.strategy, found.reason) == (
        Strategy.REBUILD,
        "it is built upon the view weekly_sales",
    )
    assert Views([view, WEEKLY]).parents(view) == ("weekly_sales",)


def test_a_view_contains_what_those_below_it_contained_when_it_was_refreshed(
    filled: Engine,
) -> None:
    token = write(filled)
    VIEWS.refresh(filled, ["weekly_sales"])
    later = write(filled)
    with filled.begin() as conn:
        BY_WEEK.refresh(conn)
    with filled.begin() as conn:
        TOP.refresh(conn)

    TOP.wait(filled, token, timeout_seconds=0)
    with pytest.raises(ViewBehindError):
        TOP.wait(filled, later, timeout_seconds=0.01)
    VIEWS.wait(filled, TOP, later, timeout_seconds=30, refresh=True)

    assert differences(filled, TOP, TRUTH) == 0


def test_a_refresh_of_the_upper_view_alone_does_not_pass_for_fresh(filled: Engine) -> None:
    token = write(filled)
    with filled.begin() as conn:
        before = BY_WEEK.freshness(conn)
    with filled.begin() as conn:
        BY_WEEK.refresh(conn)

    with filled.connect() as conn:
        stale = BY_WEEK.freshness(conn)
        below = WEEKLY.freshness(conn)
        log = ChangeLog().has_consumed(conn, "view:by_week", token)
    with pytest.raises(ViewBehindError):
        BY_WEEK.wait(filled, token, timeout_seconds=0.01)

    assert log  # its own log has nothing of the write, and never will
    assert stale.pending_rows == below.pending_rows > 0
    assert stale.as_of == before.as_of == below.refreshed_at
    assert stale.refreshed_at is not None
    assert stale.as_of is not None
    assert stale.refreshed_at > stale.as_of
    assert stale.stale_seconds > 0


def test_a_view_is_as_of_the_oldest_below_it(filled: Engine) -> None:
    with filled.begin() as conn:
        WEEKLY.refresh(conn)
    with filled.begin() as conn:
        BOTH.refresh(conn)

    with filled.connect() as conn:
        both, largest = BOTH.freshness(conn), LARGEST.freshness(conn)
        weekly = WEEKLY.freshness(conn)
    assert both.as_of == largest.refreshed_at
    assert weekly.refreshed_at is not None
    assert both.as_of is not None
    assert both.as_of < weekly.refreshed_at
    assert both.stale_seconds == 0


def test_the_parents_of_one_view_are_refreshed_in_one_snapshot(filled: Engine) -> None:
    refreshing = Thread(target=VIEWS.refresh, args=(filled, ["both"]))
    with halted_at("view.rows-written") as halted:
        refreshing.start()
        halted.wait()
        # The first of two has been refreshed, the second is yet to be.
        write(filled, "UPDATE line SET cents = cents + 1000")
        halted.release()
    refreshing.join(60)

    with filled.connect() as conn:
        lacks = {view.name: view.freshness(conn).pending_rows for view in (WEEKLY, LARGEST)}
    assert lacks["weekly_sales"] == lacks["largest_lines"] > 0
    assert {"weekly_sales", "largest_lines"} <= wrong(filled).keys()


def test_companions_that_somebody_refreshes_are_left_or_waited_for(filled: Engine) -> None:
    write(filled)
    with filled.connect() as other:
        LARGEST.refresh(other)

        assert "weekly_sales" not in VIEWS.refresh(filled, ["both"], skip_locked=True)
        other.commit()

    done = VIEWS.refresh(filled, ["both"])
    assert done["weekly_sales"].pending_rows == 120
    assert done["largest_lines"].pending_rows == 0


def test_a_refresh_that_came_between_is_begun_again(filled: Engine) -> None:
    (company,) = [c for c in VIEWS.worker(["both"]).companies if len(c.views) == 2]
    assert company.isolation_level == "REPEATABLE READ"
    with filled.connect().execution_options(isolation_level="REPEATABLE READ") as late:
        late.execute(text("SELECT count(*) FROM line"))
        write(filled)
        VIEWS.refresh(filled)

        with pytest.raises(SnapshotOutdatedError):
            company.refresh_in(late, skip_locked=False)


def test_a_table_that_is_truncated_meanwhile_is_noticed(filled: Engine) -> None:
    (company,) = [c for c in VIEWS.worker(["both"]).companies if len(c.views) == 2]
    with filled.connect().execution_options(isolation_level="REPEATABLE READ") as late:
        late.execute(text("SELECT count(*) FROM product"))
        run(filled, "TRUNCATE line")

        with pytest.raises(SnapshotOutdatedError, match="line"):
            company.refresh_in(late, skip_locked=False)


def test_workers_refresh_what_is_below_before_what_is_due(filled: Engine) -> None:
    fresh = MaterializedView("top", TOP.definition.query, max_staleness_seconds=60)
    views = Views([fresh, BY_WEEK, WEEKLY, LARGEST, BOTH], clock=ManualClock())
    worker = views.worker()
    run(filled, "DELETE FROM line WHERE week = 2")
    assert not worker.step(filled).reports
    run(filled, "UPDATE datapatterns.view_parent SET as_of = as_of - interval '1 h'")

    done = worker.step(filled)

    # Its parent's companion comes along, so that others who read both see one moment.
    assert [*done.reports] == ["weekly_sales", "largest_lines", "by_week", "top"]
    assert differences(filled, TOP, TRUTH) == 0
    assert worker.step(filled).reports == {}


def test_workers_fill_them_in_order(shop: Engine) -> None:
    worker = VIEWS.worker(populate=True)
    filled: list[str] = []
    while done := worker.step(shop).reports:
        filled += done

    assert sorted(filled) == sorted(view.name for view in VIEWS.declared)
    assert wrong(shop) == {}
    with shop.begin() as conn:
        ChangeLog().rebase(conn)
    while worker.step(shop).reports:
        pass
    assert wrong(shop) == {}


def test_what_the_lower_view_has_logged_is_tidied(filled: Engine) -> None:
    write(filled)
    VIEWS.refresh(filled)
    with filled.begin() as conn:
        ChangeLog().collect_garbage(conn)
        names = conn.scalars(text("SELECT log_name FROM datapatterns.captured_table")).all()
        left = sum(
            conn.execute(text(f'SELECT count(*) FROM datapatterns."{name}"')).scalar_one()  # noqa: S608
            for name in names
        )

    assert (len(names), left) == (5, 0)


def test_a_wrong_row_of_an_upper_view_is_found_and_mended(filled: Engine) -> None:
    run(filled, "UPDATE datapatterns.by_week_stored SET column_1 = 0 WHERE column_0 = 1")

    assert not VIEWS.verify(filled, BY_WEEK).matches
    assert VIEWS.verify(filled, WEEKLY).matches
    VIEWS.rebuild(filled, ["by_week"])
    assert VIEWS.verify(filled, BY_WEEK).matches


weeks = st.integers(0, 3)
writes = st.one_of(
    st.builds("UPDATE line SET cents = cents + 1 WHERE week = {}".format, weeks),
    st.builds("DELETE FROM line WHERE id % 5 = {}".format, weeks),
    st.builds(
        "INSERT INTO line SELECT coalesce(max(id), 0) + 1, {}, 1, 7, 1 FROM line".format, weeks
    ),
    st.just("TRUNCATE line"),
)
refreshes = st.sampled_from([["top"], ["both"], ["weekly_sales"], ["largest_lines"], []])


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(writes | refreshes, min_size=5, max_size=25))
def test_whatever_is_refreshed_when_each_view_is_what_it_reads_and_as_old_as_it_says(
    filled: Engine, acts: list[str | list[str]]
) -> None:
    tokens: list[tuple[ChangeToken, int | None]] = []
    for act in acts:
        if isinstance(act, str):
            tokens.append((write(filled, act), truth(filled)))
        else:
            VIEWS.refresh(filled, act)
            if act in (["top"], []):
                assert shown(filled) == truth(filled)
    newest = newest_shown(filled, tokens)

    if newest is not None:
        assert shown(filled) == newest
    VIEWS.refresh(filled)
    assert wrong(filled) == {}


def newest_shown(engine: Engine, tokens: list[tuple[ChangeToken, int | None]]) -> int | None:
    """Return what the top has to show by what it says that it contains; None for no write."""
    newest = None
    for token, value in tokens:
        try:
            TOP.wait(engine, token, timeout_seconds=0)
        except ViewBehindError:
            break
        newest = value
    return newest


def truth(engine: Engine) -> int | None:
    with engine.connect() as conn:
        found: int | None = conn.scalar(TRUTH)
    return found


def shown(engine: Engine) -> int | None:
    with engine.connect() as conn:
        found: int | None = conn.scalar(select(TOP.c.most))
    return found
