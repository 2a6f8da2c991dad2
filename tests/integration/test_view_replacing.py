"""A view gets another query while it is read and written to; nobody sees a gap."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, select, text

from datapatterns.change_log import ChangeLog
from datapatterns.errors import ViewChangedError, ViewInUseError, ViewMigrationError
from datapatterns.failpoints import armed
from datapatterns.materialized_view import Full, MaterializedView, Views, ViewState
from datapatterns.materialized_view.blueprint import Blueprint
from datapatterns.materialized_view.creating import drop_view
from datapatterns.materialized_view.replacing import replace_view
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    Product,
    create,
    create_tables,
    differences,
    differences_now,
    refresh,
    run,
    verify,
)

pytestmark = pytest.mark.postgres


def by_week() -> AnySelect:
    return select(Line.week, func.sum(Line.cents).label("cents")).group_by(Line.week)


def positive() -> AnySelect:
    """The same columns, of fewer lines."""
    return by_week().where(Line.cents > 0)


def wider() -> AnySelect:
    """One more column at the end."""
    return by_week().add_columns(func.count().label("lines"))


def other() -> AnySelect:
    """Other columns, of another table."""
    return select(Product.department, func.count().label("products")).group_by(Product.department)


OLD = MaterializedView("weekly", by_week())
NEW = {
    "same columns": MaterializedView("weekly", positive()),
    "one column more": MaterializedView("weekly", wider()),
    "other columns": MaterializedView("weekly", other()),
    "kept in another way": MaterializedView("weekly", by_week(), maintain=Full()),
}
QUERIES = {
    "same columns": positive(),
    "one column more": wider(),
    "other columns": other(),
    "kept in another way": by_week(),
}


def blueprint(view: MaterializedView) -> Blueprint:
    definition = view.definition
    return definition.blueprint(definition.candidates[0])


def migrate(engine: Engine, view: MaterializedView, *, at_once: bool = False) -> None:
    with engine.begin() as conn:
        replace_view(conn, view.definition.names, blueprint(view), at_once=at_once)


def shown(conn: Connection) -> list[tuple[Any, ...]]:
    return [
        tuple(row) for row in conn.execute(text("SELECT * FROM datapatterns.weekly ORDER BY 1"))
    ]


def rows(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as conn:
        return shown(conn)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    """A populated view of three lines."""
    with engine.begin() as conn:
        create_tables(conn)
    run(
        engine,
        "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
        "INSERT INTO line VALUES (1, 1, 1, 10, 1), (2, 1, 1, -5, 1), (3, 2, 2, 7, 1)",
    )
    create(engine, OLD)
    return engine


def relations(engine: Engine) -> set[str]:
    with engine.connect() as conn:
        found = conn.scalars(
            text(
                "SELECT relname FROM pg_class WHERE relname LIKE 'weekly%' AND relkind IN ('v','r')"
                " AND relnamespace = 'datapatterns'::regnamespace"
            )
        )
        return {*found}


WHOLE = {"weekly", "weekly_stored", "weekly_definition", "weekly_realtime"}


@pytest.mark.parametrize("change", sorted(NEW))
def test_readers_see_the_old_rows_until_the_new_ones_are_there(shop: Engine, change: str) -> None:
    new, query = NEW[change], QUERIES[change]
    before = rows(shop)

    migrate(shop, new)
    assert rows(shop) == before
    run(shop, "INSERT INTO line VALUES (4, 3, 1, 9, 1)")
    if change != "kept in another way":  # that, the old code can, too
        refresh(shop, OLD)  # whoever still runs the old code
        assert differences(shop, OLD, by_week()) == 0
        before = rows(shop)
    with shop.begin() as conn:
        new.populate(conn)
    assert rows(shop) == before
    run(shop, "INSERT INTO line VALUES (5, 3, 1, 9, 1)", "INSERT INTO product VALUES (3, 'x')")
    refresh(shop, new)

    assert differences(shop, new, query) == 0
    assert relations(shop) == WHOLE
    assert verify(shop, new) == []
    run(shop, "DELETE FROM line WHERE id < 3", "DELETE FROM product WHERE id = 3")
    with shop.connect() as conn:
        assert differences_now(conn, new, query) == 0
    refresh(shop, new)
    assert differences(shop, new, query) == 0
    if change != "kept in another way":
        with shop.connect() as conn, pytest.raises(ViewChangedError):
            OLD.refresh(conn)


def test_a_refresh_populates_and_the_next_one_switches(shop: Engine) -> None:
    new = NEW["same columns"]
    views = Views([new])
    seen = []

    migrate(shop, new)
    for _ in range(3):
        with shop.connect() as conn:
            (status,) = views.status(conn)
        seen.append((status.state, differences(shop, new, positive())))
        views.refresh(shop)

    assert seen == [
        (ViewState.UNPOPULATED, 2),
        (ViewState.REPLACING, 2),
        (ViewState.FRESH, 0),
    ]


def test_populating_all_views_populates_the_next_versions(shop: Engine) -> None:
    migrate(shop, NEW["same columns"])

    assert [*Views([NEW["same columns"]]).populate(shop)] == ["weekly"]
    assert [*Views([NEW["same columns"]]).populate(shop)] == []


def test_a_view_that_nobody_has_populated_is_replaced_in_the_migration(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
        OLD.create(conn)
        conn.execute(text("CREATE VIEW upon AS SELECT week FROM datapatterns.weekly"))
    new = NEW["one column more"]
    migrate(engine, new)

    assert relations(engine) == WHOLE
    with engine.begin() as conn:
        new.populate(conn)
    assert verify(engine, new) == []


def test_the_way_back_in_the_middle_leaves_the_old_version(shop: Engine) -> None:
    before = rows(shop)
    migrate(shop, NEW["other columns"])
    refresh(shop, NEW["other columns"])
    migrate(shop, OLD)

    assert relations(shop) == WHOLE
    assert rows(shop) == before
    refresh(shop, OLD)
    with shop.connect() as conn, pytest.raises(ViewChangedError):
        NEW["other columns"].refresh(conn)


def test_a_third_version_takes_the_place_of_the_second(shop: Engine) -> None:
    migrate(shop, NEW["other columns"])
    refresh(shop, NEW["other columns"])
    migrate(shop, NEW["same columns"])
    refresh(shop, NEW["same columns"])
    refresh(shop, NEW["same columns"])

    assert relations(shop) == WHOLE
    assert differences(shop, NEW["same columns"], positive()) == 0


def test_at_once_means_empty_until_populated(shop: Engine) -> None:
    migrate(shop, NEW["same columns"], at_once=True)

    assert (relations(shop), rows(shop)) == (WHOLE, [])


def test_dropping_the_view_drops_what_was_going_to_take_its_place(shop: Engine) -> None:
    migrate(shop, NEW["other columns"])
    with shop.begin() as conn:
        drop_view(conn, OLD.definition.names)
        left = conn.scalars(text("SELECT name FROM datapatterns.change_consumer")).all()
        captured = conn.scalars(text("SELECT table_name FROM datapatterns.captured_table")).all()

    assert (relations(shop), left, captured) == (set(), [], [])


def test_tables_that_only_the_old_version_read_are_captured_no_more(shop: Engine) -> None:
    migrate(shop, NEW["other columns"])
    for _ in range(2):
        refresh(shop, NEW["other columns"])

    with shop.connect() as conn:
        captured = conn.scalars(text("SELECT table_name FROM datapatterns.captured_table")).all()
    assert captured == ["product"]


@pytest.mark.parametrize("step", ["view.rows-written", "view.switched"])
def test_who_dies_on_the_way_leaves_the_old_rows_and_another_goes_on(
    shop: Engine, step: str
) -> None:
    new, before = NEW["other columns"], rows(shop)
    migrate(shop, new)
    if step == "view.switched":
        refresh(shop, new)
    with armed(step, die), pytest.raises(Died):
        refresh(shop, new)
    assert rows(shop) == before

    for _ in range(2):
        refresh(shop, new)
    assert differences(shop, new, other()) == 0
    assert relations(shop) == WHOLE


class Died(Exception):  # noqa: N818 -- nobody handles it
    pass


def die() -> None:
    raise Died


@pytest.mark.parametrize("change", ["one column more", "other columns"])
def test_rights_comments_and_views_upon_it_stay(
    limited_role: str, shop: Engine, change: str
) -> None:
    run(
        shop,
        "CREATE VIEW upon AS SELECT 1 AS one FROM datapatterns.weekly",
        "CREATE VIEW topmost WITH (security_barrier = true) AS SELECT one AS uno FROM upon",
        f"GRANT USAGE ON SCHEMA datapatterns TO {limited_role}",
        f"GRANT SELECT ON datapatterns.weekly TO {limited_role}",
        f"GRANT SELECT ON datapatterns.weekly_realtime, topmost TO {limited_role}",
        f"GRANT SELECT (one) ON upon TO {limited_role}",
        "COMMENT ON VIEW datapatterns.weekly IS 'it''s weekly'",
        "COMMENT ON VIEW topmost IS 'on top'",
    )
    new = NEW[change]
    migrate(shop, new)
    for _ in range(2):
        refresh(shop, new)

    assert differences(shop, new, QUERIES[change]) == 0
    with shop.begin() as conn:
        for name, comment in (("datapatterns.weekly", "it's weekly"), ("topmost", "on top")):
            found = conn.scalar(text("SELECT obj_description(to_regclass(:name))"), {"name": name})
            assert found == comment
        options = text("SELECT reloptions FROM pg_class WHERE relname = 'topmost'")
        assert conn.scalar(options) == ["security_barrier=true"]
        conn.execute(text(f"SET LOCAL ROLE {limited_role}"))
        for query in ("TABLE datapatterns.weekly", "TABLE datapatterns.weekly_realtime"):
            assert conn.execute(text(query)).all()
        for query in ("TABLE topmost", "SELECT one FROM upon"):
            assert conn.execute(text(query)).all()


@pytest.mark.parametrize(
    ("upon", "named"),
    [
        ("CREATE VIEW upon AS SELECT cents FROM datapatterns.weekly", "'cents'"),
        ("CREATE MATERIALIZED VIEW upon AS SELECT 1 FROM datapatterns.weekly", "upon"),
    ],
)
def test_what_needs_the_old_columns_is_named(shop: Engine, upon: str, named: str) -> None:
    run(shop, upon)

    with pytest.raises(ViewMigrationError, match=named):
        migrate(shop, NEW["other columns"])
    migrate(shop, NEW["one column more"])


def test_a_reader_that_stays_holds_up_the_switch_and_nobody_else(shop: Engine) -> None:
    new, before = NEW["same columns"], rows(shop)
    migrate(shop, new)
    refresh(shop, new)

    with shop.connect() as reader:
        shown(reader)
        refresh(shop, new)
        assert rows(shop) == before
    refresh(shop, new)

    assert differences(shop, new, positive()) == 0


def test_a_refresher_of_the_old_version_is_waited_for(shop: Engine) -> None:
    new = NEW["same columns"]
    migrate(shop, new)
    refresh(shop, new)

    with ThreadPoolExecutor() as pool, shop.connect() as conn:
        OLD.refresh(conn)
        switching = pool.submit(refresh, shop, new)
        until_blocked_by(shop, conn)
        conn.commit()
        switching.result()

    assert differences(shop, new, positive()) == 0


def test_who_waited_for_the_switch_goes_on_with_the_view(shop: Engine) -> None:
    new = NEW["same columns"]
    migrate(shop, new)
    refresh(shop, new)

    with ThreadPoolExecutor() as pool, shop.connect() as conn:
        new.refresh(conn)
        waiting = pool.submit(refresh, shop, new)
        until_blocked_by(shop, conn)
        with shop.connect() as other_conn:
            assert new.refresh(other_conn, skip_locked=True) is None
        conn.commit()
        waiting.result()

    assert relations(shop) == WHOLE


def write(engine: Engine, done: threading.Event, seed: int) -> int:
    written = 0
    insert = text("INSERT INTO line VALUES (:id, :week, 1, :cents, 1)")
    update = text("UPDATE line SET cents = cents + 1 WHERE id % 7 = :seed")
    while not done.is_set():
        values = {"id": 100 + 10 * written + seed, "week": written % 5, "cents": written % 3 - 1}
        with engine.begin() as conn:
            conn.execute(insert, values)
            conn.execute(update, {"seed": seed})
        written += 1
    return written


def read(engine: Engine, done: threading.Event) -> int:
    seen = 0
    while not done.is_set():
        assert rows(engine)
        seen += 1
    return seen


def collect(engine: Engine, done: threading.Event) -> int:
    while not done.is_set():
        with engine.begin() as conn:
            ChangeLog().collect_garbage(conn)
    return 1


def test_nothing_is_lost_under_load_and_no_reader_sees_a_gap(shop: Engine) -> None:
    new = NEW["same columns"]
    done = threading.Event()
    with ThreadPoolExecutor(max_workers=5) as pool:
        loops = [pool.submit(write, shop, done, seed) for seed in range(2)]
        loops += [pool.submit(each, shop, done) for each in (read, read, collect)]
        try:
            for version in (new, OLD, new):
                migrate(shop, version)
                while relations(shop) != WHOLE:
                    refresh(shop, version)
        finally:
            done.set()
        assert all(loop.result() for loop in loops)
    refresh(shop, new)

    assert differences(shop, new, positive()) == 0


def test_what_waits_to_read_a_view_no_more_is_told_from_what_has_to_be_dropped(
    engine: Engine,
) -> None:
    base, other = OLD, MaterializedView("monthly", select(func.sum(OLD.c.cents).label("cents")))
    upon = MaterializedView("total", select(func.sum(OLD.c.cents).label("cents")))
    without = MaterializedView("total", select(func.sum(Line.cents).label("cents")))
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, base, upon, other)
    migrate(engine, without)

    with engine.begin() as conn, pytest.raises(ViewInUseError) as both:
        base.drop(conn)
    with engine.begin() as conn:
        other.drop(conn)
    with engine.begin() as conn, pytest.raises(ViewInUseError) as waits:
        replace_view(conn, base.definition.names, blueprint(NEW["other columns"]))

    assert both.value.children == ["monthly", "total"]
    assert both.value.waiting == waits.value.waiting == waits.value.children == ["total"]
    assert "drop monthly first" in str(both.value)
    assert "drop" not in str(waits.value)
    assert "`datapatterns views refresh`" in str(waits.value)

    refresh(engine, without)
    refresh(engine, without)
    with engine.begin() as conn:
        base.drop(conn)
