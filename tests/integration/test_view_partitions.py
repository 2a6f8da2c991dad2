"""Where a partition comes, goes or is emptied, only what a view shows of it is computed anew."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, event, func, select, text

from datapatterns.change_log.partitions import UNBOUNDED, UNKNOWN, WHOLE
from datapatterns.failpoints import armed
from datapatterns.materialized_view import MaterializedView, Strategy, Views
from datapatterns.materialized_view.following import OVERTAKEN
from datapatterns.materialized_view.recomputing import TRUNCATED, UNPLACED
from tests.fixtures.sales_in_partitions import (
    BY_DAY,
    DAILY,
    LOG,
    NAMED,
    Spoiled,
    daily,
    largest,
    lay_out,
    named,
    recapture,
    refreshed,
    sale,
)
from tests.fixtures.view_tables import AnySelect, create, differences, differences_now, run, verify

DETACH = "ALTER TABLE sale DETACH PARTITION sale_0"
ATTACH = "ALTER TABLE sale ATTACH PARTITION sale_0 FOR VALUES FROM (0) TO (10)"
COME_AND_GO = {
    "detached": [DETACH],
    "detached, with partitions of its own": ["ALTER TABLE sale DETACH PARTITION sale_1"],
    "one of these": ["ALTER TABLE sale_1 DETACH PARTITION sale_1_a"],
    "dropped": ["DROP TABLE sale_0"],
    "changed meanwhile": [DETACH, "UPDATE sale_0 SET cents = 7", ATTACH],
    "moved": [
        DETACH,
        "DELETE FROM sale WHERE day >= 40",
        "UPDATE sale_0 SET day = day + 40",
        "ALTER TABLE sale ATTACH PARTITION sale_0 FOR VALUES FROM (40) TO (50)",
    ],
    "truncated": ["TRUNCATE sale_0"],
    "truncated, with partitions of its own": ["TRUNCATE sale_1"],
    "one of these truncated": ["TRUNCATE sale_1_a"],
    "truncated, then changed": ["TRUNCATE sale_0", "INSERT INTO sale VALUES (1, 5, 'b', 1)"],
    "truncated, then with a new day": ["TRUNCATE sale_0", "INSERT INTO sale VALUES (1, 8, 'b', 1)"],
    "truncated and gone": ["INSERT INTO sale VALUES (1, 5, 'b', 1)", "TRUNCATE sale_0", DETACH],
}


@pytest.fixture(params=BY_DAY, ids=lambda view: view.name)
def view(request: pytest.FixtureRequest, engine: Engine) -> MaterializedView:
    """A view of sales that shows their day."""
    lay_out(engine)
    view: MaterializedView = request.param
    create(engine, view)
    return view


@pytest.mark.parametrize("statements", COME_AND_GO.values(), ids=COME_AND_GO)
def test_only_the_partition_is_computed_anew(
    engine: Engine, view: MaterializedView, statements: list[str]
) -> None:
    spoiled = Spoiled(engine, view)
    run(engine, *statements, "UPDATE sale SET cents = cents + 1 WHERE day IN (3, 12, 25)")
    with engine.connect() as conn:
        assert differences_now(conn, view, BY_DAY[view]) == 0
    spoiled.spoil(24)

    report = refreshed(engine, view)

    assert report.reason is None
    assert report.strategy is view.explain().strategy
    assert report.partitions >= 1
    assert spoiled.stays(24)  # nobody has looked there
    with engine.begin() as conn:
        view.rebuild(conn, where=view.c.day == 24)
    assert differences(engine, view, BY_DAY[view]) == 0
    assert verify(engine, view) == []
    with engine.begin() as conn:
        LOG.capture(conn, "sale", [])  # or writers would mark one that is elsewhere each time
    run(engine, "UPDATE sale SET cents = cents + 1")
    assert (refreshed(engine, view).partitions, differences(engine, view, BY_DAY[view])) == (0, 0)


def test_a_partition_that_is_not_captured_is_read_each_time(
    engine: Engine, view: MaterializedView
) -> None:
    spoiled = Spoiled(engine, view)
    run(engine, "DELETE FROM sale WHERE day > 29", "ALTER TABLE sale DETACH PARTITION sale_rest")
    refreshed(engine, view)
    run(engine, "CREATE TABLE sale_3 PARTITION OF sale FOR VALUES FROM (30) TO (40)")
    spoiled.spoil(24)

    for cents in (1, 2):
        run(
            engine,
            f"INSERT INTO sale_3 VALUES (1, 31, 'a', {cents})",  # noqa: S608 -- nobody logs it
            "INSERT INTO sale VALUES (1, 32, 'b', 1), (1, 21, 'b', 1)",
        )
        report = refreshed(engine, view)
        assert (report.partitions, report.reason) == (1, None)
    assert recapture(engine) == ["public.sale"]
    assert refreshed(engine, view).partitions == 1
    run(engine, "INSERT INTO sale_3 VALUES (1, 31, 'a', 3)")

    assert refreshed(engine, view).partitions == 0
    assert spoiled.stays(24)
    with engine.begin() as conn:
        view.rebuild(conn, where=view.c.day.in_([24]))
    assert differences(engine, view, BY_DAY[view]) == 0


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["TRUNCATE sale"], TRUNCATED),
        (["TRUNCATE sale_rest"], TRUNCATED),
        (["TRUNCATE town"], TRUNCATED),
        (["UPDATE sale SET day = 25 WHERE day = 5"], TRUNCATED),
        (["ALTER TABLE sale DETACH PARTITION sale_rest"], UNBOUNDED),
        (["ALTER TABLE sale DISABLE TRIGGER ALL"], UNKNOWN),
        (
            [
                "ALTER TABLE sale DISABLE TRIGGER datapatterns_capture_insert",
                "ALTER TABLE sale ENABLE ALWAYS TRIGGER datapatterns_capture_insert",
            ],
            WHOLE,
        ),
        (["ALTER TABLE sale ALTER cents SET DEFAULT 3"], WHOLE),
    ],
)
def test_anything_else_computes_all_of_it_anew(
    engine: Engine, statements: list[str], reason: str
) -> None:
    lay_out(engine)
    create(engine, largest)
    run(engine, *statements)

    report = refreshed(engine, largest)

    assert report.strategy is Strategy.REBUILD
    assert report.partitions == 0
    assert report.reason == reason
    assert differences(engine, largest, BY_DAY[largest]) == 0


@pytest.mark.parametrize("statement", [DETACH, "TRUNCATE sale_0"])
def test_a_view_without_the_key_is_rebuilt(engine: Engine, statement: str) -> None:
    lay_out(engine)
    create(engine, named)
    run(engine, statement)

    report = refreshed(engine, named)

    assert (report.strategy, report.reason) == (Strategy.REBUILD, UNPLACED)
    assert differences(engine, named, NAMED) == 0


OTHER = sale.alias("other")
TWICE: AnySelect = (
    select(sale.c.day, func.count().label("n"))
    .join(OTHER, OTHER.c.town == sale.c.town)
    .group_by(sale.c.day)
)
MISSING: AnySelect = (
    select(sale.c.day, func.count().label("n"))
    .select_from(OTHER)
    .join(sale, (OTHER.c.id == sale.c.id + 1) & (sale.c.cents > 2), isouter=True)
    .group_by(sale.c.day)
)


@pytest.mark.parametrize("query", [TWICE, MISSING])
@pytest.mark.parametrize("statement", [DETACH, "TRUNCATE sale_0"])
def test_rows_that_meet_those_of_other_partitions_are_all_computed_anew(
    engine: Engine, query: AnySelect, statement: str
) -> None:
    view = MaterializedView("met", query)
    lay_out(engine)
    create(engine, view)
    run(engine, statement)

    report = refreshed(engine, view)

    assert (report.strategy, report.reason) == (Strategy.REBUILD, UNPLACED)
    assert differences(engine, view, query) == 0


LISTED = (
    "CREATE TABLE sale (id int, day int, town text, cents int) PARTITION BY LIST (town)",
    "CREATE TABLE sale_a PARTITION OF sale FOR VALUES IN ('a', 'O''x\\\\%', NULL)",
    "CREATE TABLE sale_b PARTITION OF sale FOR VALUES IN ('b')",
    (
        "INSERT INTO sale SELECT g, g, (ARRAY['a', 'O''x\\\\%', NULL, 'b'])[1 + g % 4], g"
        " FROM generate_series(1, 20) g"
    ),
)
BY_TOWN: AnySelect = select(
    sale.c.town, func.count().label("n"), func.max(sale.c.cents).label("cents")
).group_by(sale.c.town)


@pytest.mark.parametrize(
    "query", [BY_TOWN, select(sale.c.town, func.count().label("n")).group_by(sale.c.town)]
)
@pytest.mark.parametrize("statement", ["TRUNCATE sale_a", "DROP TABLE sale_a"])
def test_null_may_be_in_a_list(engine: Engine, query: AnySelect, statement: str) -> None:
    view = MaterializedView("by_town", query)
    run(engine, *LISTED)
    create(engine, view)
    run(engine, statement, "UPDATE sale SET cents = 8")

    report = refreshed(engine, view)

    assert (report.partitions, report.reason) == (1, None)
    assert differences(engine, view, query) == 0
    with engine.connect() as conn:
        assert conn.scalars(select(view.c.town)).all() == ["b"]


def elsewhere(engine: Engine, *statements: str) -> Callable[[], None]:
    def act() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run, engine, "SET LOCAL lock_timeout = '9s'", *statements).result()

    return act


def test_a_partition_that_comes_while_another_is_computed_makes_the_view_be_rebuilt(
    engine: Engine,
) -> None:
    lay_out(engine)
    run(
        engine,
        "DROP TABLE sale_rest",
        "CREATE TABLE sale_3 (LIKE sale)",
        "INSERT INTO sale_3 VALUES (1, 31, 'a', 1)",
    )
    create(engine, daily)
    run(engine, DETACH)
    come = "ALTER TABLE sale ATTACH PARTITION sale_3 FOR VALUES FROM (30) TO (40)"

    with armed("view.rows-written", elsewhere(engine, come)):
        report = refreshed(engine, daily)

    assert (report.strategy, report.reason) == (Strategy.REBUILD, OVERTAKEN)
    assert differences(engine, daily, DAILY) == 0
    assert refreshed(engine, daily).partitions == 1  # it is not captured
    assert differences(engine, daily, DAILY) == 0


@pytest.mark.parametrize("before", [["SELECT 1"], ["TRUNCATE sale_2"], ["DROP TABLE sale_2"]])
def test_a_partition_that_comes_while_the_view_is_refreshed_and_goes_again_leaves_nothing(
    engine: Engine, before: list[str]
) -> None:
    lay_out(engine)
    run(engine, DETACH)
    create(engine, daily)
    run(engine, *before, "INSERT INTO sale VALUES (1, 12, 'a', 1)")
    left = [elsewhere(engine, ATTACH)]

    def come(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "MATERIALIZED" in statement and left:
            left.pop()()

    with engine.begin() as conn:
        event.listen(conn, "before_cursor_execute", come)
        daily.refresh(conn)
    assert differences(engine, daily, DAILY) == 0
    run(engine, DETACH)

    with engine.connect() as conn:
        assert differences_now(conn, daily, DAILY) == 0
    refreshed(engine, daily)
    assert left == []
    assert differences(engine, daily, DAILY) == 0


def test_a_partition_that_is_truncated_after_the_look_makes_the_view_be_rebuilt(
    engine: Engine,
) -> None:
    lay_out(engine)
    create(engine, daily)
    run(engine, "TRUNCATE sale_0", "ALTER TABLE sale DETACH PARTITION sale_1")
    left = [elsewhere(engine, "TRUNCATE sale_2")]

    def before(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "difference" in statement and left:
            left.pop()()

    with engine.begin() as conn:
        event.listen(conn, "before_cursor_execute", before)
        report = daily.refresh(conn)

    assert left == []
    assert report is not None
    assert (report.strategy, report.partitions) == (Strategy.REBUILD, 0)
    assert differences(engine, daily, DAILY) == 0


@pytest.mark.parametrize("statement", [DETACH, "TRUNCATE sale_0", "DROP TABLE sale_2"])
def test_views_that_are_refreshed_in_one_snapshot_compute_the_partition_anew(
    engine: Engine, statement: str
) -> None:
    lay_out(engine)
    both = select(daily.c.day, largest.c.cents).join_from(
        daily.table, largest.table, daily.c.day == largest.c.day
    )
    views = Views([daily, largest, MaterializedView("both", both)])
    with engine.begin() as conn:
        views.create(conn)
    views.populate(engine)
    run(engine, statement, "INSERT INTO sale VALUES (1, 3, 'b', 1), (1, 8, 'b', 1)")

    done = views.refresh(engine)

    assert [done[name].partitions for name in ("daily", "largest")] == [1, 1]
    for view, query in {daily: DAILY, largest: BY_DAY[largest]}.items():
        assert differences(engine, view, query) == 0
    assert views.verify(engine, views.find("both")).matches


@pytest.mark.parametrize(
    ("statement", "read"),
    [
        # Where a row would go by now if one came.
        (DETACH, {"sale_rest"}),
        ("DROP TABLE sale_2", {"sale_rest"}),
        ("TRUNCATE sale_2", {"sale_2"}),
        ("TRUNCATE sale", {"sale_0", "sale_1_a", "sale_1_rest", "sale_2", "sale_rest"}),
    ],
)
def test_no_other_partition_is_read(engine: Engine, statement: str, read: set[str]) -> None:
    lay_out(engine)
    create(engine, daily)
    run(engine, statement)

    with engine.begin() as conn:
        daily.refresh(conn)
        # The planner locks no partition that it leaves out.
        locked = text(
            "SELECT c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
            " WHERE l.pid = pg_backend_pid() AND c.relname LIKE 'sale\\_%' AND c.relkind = 'r'"
        )
        assert set(conn.scalars(locked)) == read
