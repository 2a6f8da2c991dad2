"""`datapatterns views`, and what `datapatterns worker` does with views."""

import json
import signal
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, select, text

from datapatterns.materialized_view import MaterializedView, Views
from datapatterns.testing import wait_until
from tests.fixtures.commands import Run, rows, start
from tests.fixtures.empty_database import shown
from tests.fixtures.view_tables import (
    create_tables,
    differences,
    largest_lines,
    weekly_sales,
)
from tests.fixtures.view_tables import (
    run as execute,
)

pytestmark = pytest.mark.postgres

SECONDS = 60.0
APP = """
from datapatterns import DataLayer
from datapatterns.materialized_view import Every, MaterializedView
from tests.fixtures.view_tables import largest_lines, weekly_sales

weekly = MaterializedView("weekly_sales", weekly_sales(), max_staleness_seconds={seconds})
largest = MaterializedView("largest_lines", largest_lines())
layer = DataLayer({url!r}, views=[weekly, largest])
"""
WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
VIEWS = Views([WEEKLY, LARGEST])


@pytest.fixture
def app(
    database_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str]:
    name = f"views_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url), seconds=0.1))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--app", f"{name}:layer"


@pytest.fixture
def shop(engine: Engine) -> Engine:
    with engine.begin() as conn:
        create_tables(conn)
        VIEWS.create(conn)
    execute(
        engine,
        "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
        "INSERT INTO line SELECT g, g % 10, 1 + g % 2, 10 * g, 1 FROM generate_series(1, 40) g",
    )
    return engine


@pytest.fixture
def filled(shop: Engine) -> Engine:
    VIEWS.populate(shop)
    return shop


def test_people_see_how_each_view_stands_and_what_to_do(
    run: Run, filled: Engine, app: tuple[str, str]
) -> None:
    execute(filled, "UPDATE line SET cents = cents + 1 WHERE id < 4")
    execute(filled, "UPDATE datapatterns.change_consumer SET advanced_at = '2026-01-01'")

    ran = run("views", "list", *app)

    assert ran.code == 0
    assert "weekly_sales" in ran.out
    assert "at most 0.1 s stale" in ran.out
    assert "overdue" in ran.out
    assert "on demand" in ran.out
    assert "weekly_sales is overdue: is a worker running" in ran.err
    assert "largest_lines" not in ran.err


def test_programs_see_everything(run: Run, filled: Engine, app: tuple[str, str]) -> None:
    execute(filled, "UPDATE line SET cents = cents + 1 WHERE id < 4")

    (largest,) = rows(run("views", "list", "largest_lines", "--json", *app))
    (limited,) = rows(run("views", "list", "largest_lines", "--limit", "2", "--json", *app))

    assert (largest["name"], largest["state"], largest["pending_rows"]) == (
        "largest_lines",
        "stale",
        6,
    )
    assert (largest["refreshed"], largest["built_upon"]) == ("on demand", [])
    assert largest["refreshed_at"]
    assert limited["pending_rows"] == 2


@pytest.mark.usefixtures("shop")
def test_what_was_not_created_or_filled_is_told(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    with engine.begin() as conn:
        LARGEST.drop(conn)

    listed = run("views", "list", *app)
    explained = rows(run("views", "explain", "--json", *app))

    assert "largest_lines is missing: create() it" in listed.err
    assert "weekly_sales is unpopulated: fill it: datapatterns views populate" in listed.err
    assert [(one["name"], one["created"]) for one in explained] == [
        ("weekly_sales", True),
        ("largest_lines", False),
    ]


def test_a_view_explains_how_it_is_kept(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    (one,) = rows(run("views", "explain", "weekly_sales", "--json", *app))

    with shop.connect() as conn:
        assert (one["strategy"], one["reason"]) == (
            WEEKLY.explain(conn).strategy.value,
            WEEKLY.explain(conn).reason,
        )
    assert run("views", "explain", "weekly", *app).code == 2


def test_views_are_filled_refreshed_and_rebuilt(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    filled = rows(run("views", "populate", "--json", *app))
    again = rows(run("views", "populate", "--json", *app))
    execute(shop, "DELETE FROM line WHERE id < 4")
    refreshed = rows(run("views", "refresh", "--json", *app))
    assert [differences(shop, view, view.definition.query) for view in VIEWS.declared] == [0, 0]
    execute(shop, "DELETE FROM datapatterns.weekly_sales_stored")
    rebuilt = rows(run("views", "rebuild", "weekly_sales", "--json", *app))

    assert [one["name"] for one in filled] == ["weekly_sales", "largest_lines"]
    assert again == []
    assert [one["pending_rows"] for one in refreshed] == [3, 3]
    assert [(one["name"], one["rows_changed"], one["done"]) for one in rebuilt] == [
        ("weekly_sales", 10, True)
    ]
    assert [differences(shop, view, view.definition.query) for view in VIEWS.declared] == [0, 0]


def test_a_part_of_a_view_is_rebuilt(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    run("views", "populate", *app)
    execute(shop, "DELETE FROM datapatterns.weekly_sales_stored")
    part = rows(run("views", "rebuild", "weekly_sales", "--where", "week=1", "--json", *app))
    missing = run("views", "rebuild", "--where", "week=1", "weekly_sales", "largest_lines", *app)
    other = run("views", "rebuild", "weekly_sales", "--where", "cents>7", *app)

    assert part[0]["rows_changed"] > 0
    with shop.connect() as conn:
        assert set(conn.scalars(select(WEEKLY.c.week))) == {1}
    assert "name it" in missing.err
    assert "told by: week, department" in other.err
    assert (missing.code, other.code) == (2, 2)


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    would_fill = rows(run("views", "populate", "--dry-run", "--json", *app))
    run("views", "populate", *app)
    execute(shop, "DELETE FROM line WHERE id < 4")
    would_refresh = rows(run("views", "refresh", "weekly_sales", "--dry-run", "--json", *app))
    would_rebuild = rows(run("views", "rebuild", "weekly_sales", "--dry-run", "--json", *app))

    assert [one["name"] for one in would_fill] == ["weekly_sales", "largest_lines"]
    assert would_refresh[0]["pending_rows"] == 3
    assert not any(one["done"] for one in (*would_fill, *would_refresh, *would_rebuild))
    assert differences(shop, WEEKLY, weekly_sales()) > 0
    assert "all of them are filled" in run("views", "populate", "--dry-run", *app).err


def test_what_was_done_is_told_even_if_the_next_one_fails(
    run: Run, filled: Engine, app: tuple[str, str]
) -> None:
    execute(
        filled,
        "UPDATE datapatterns.change_consumer SET populated = false"
        " WHERE name = 'view:largest_lines'",
    )

    ran = run("views", "refresh", "--json", *app)

    assert ran.code == 4
    assert [json.loads(line)["name"] for line in ran.out.splitlines()] == ["weekly_sales"]
    assert json.loads(ran.err.splitlines()[-1])["error"] == "ViewNotPopulatedError"


def test_views_that_others_refresh_are_left_out_if_that_is_asked_for(
    run: Run, filled: Engine, app: tuple[str, str]
) -> None:
    with filled.connect() as other:
        WEEKLY.refresh(other)

        done = rows(run("views", "refresh", "--skip-locked", "--json", *app))

    assert [one["name"] for one in done] == ["largest_lines"]


def test_a_right_view_verifies_and_a_wrong_one_exits_with_5(
    run: Run, filled: Engine, app: tuple[str, str]
) -> None:
    right = rows(run("views", "verify", "--json", *app))
    execute(
        filled,
        "UPDATE datapatterns.weekly_sales_stored SET measure_0_sum = 1 WHERE key_0 = 3",
    )
    wrong = run("views", "verify", *app)
    told = run("views", "verify", "weekly_sales", "--json", *app)

    assert [(one["matches"], one["share"], one["seed"]) for one in right] == [(True, 1, None)] * 2
    assert (wrong.code, told.code) == (5, 5)
    assert "not what the query gives: weekly_sales" in wrong.err
    assert "datapatterns views rebuild weekly_sales" in wrong.err
    (row,) = [json.loads(line) for line in told.out.splitlines()]
    assert {one["kind"] for one in row["differences"]} == {"missing", "unexpected"}
    assert {one["row"]["week"] for one in row["differences"]} == {3}


def test_a_part_of_a_view_is_verified(run: Run, filled: Engine, app: tuple[str, str]) -> None:
    execute(
        filled,
        "UPDATE datapatterns.weekly_sales_stored SET measure_0_sum = 1 WHERE key_0 = 3",
    )
    verify = ("views", "verify", "weekly_sales", "--json", *app)

    (few,) = rows(run(*verify, "--where", "week>=5", "--where", "week < 7"))
    (named,) = rows(run(*verify, "--where", "department=butter"))
    (sample,) = rows(run(*verify, "--where", "week<>3", "--sample", "50%", "--seed", "7"))

    assert (few["rows"], named["rows"]) == (2, 0)
    assert (sample["share"], sample["seed"]) == (0.5, 7)
    assert run(*verify, "--where", "week=3").code == 5
    for misuse in (["--where", "week"], ["--where", "cost=1"], ["--sample", "2.5"]):
        assert run(*verify, *misuse).code == 2
    assert run("views", "verify", "--where", "week=3", *app).code == 2


def test_what_is_not_filled_is_left_out_of_verifying(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    VIEWS.populate(shop, ["largest_lines"])

    ran = run("views", "verify", "--json", *app)

    assert [one["name"] for one in rows(ran)] == ["largest_lines"]
    assert "weekly_sales is left out: unpopulated" in ran.err
    assert run("views", "verify", "weekly_sales", *app).code == 4


@pytest.mark.usefixtures("shop")
def test_a_layer_without_views_says_where_they_are_declared(run: Run, at: tuple[str, str]) -> None:
    for words in (("refresh",), ("populate",), ("rebuild", "weekly_sales"), ("verify",)):
        ran = run("views", *words, *at)
        assert (ran.code, "DataLayer(views=[...])" in ran.err) == (2, True)
    assert "no view is declared" in run("views", "list", *at).err


def test_every_command_of_views_teaches(run: Run) -> None:
    listing = run("views", "--help").out
    for name in ("list", "explain", "populate", "refresh", "rebuild", "verify"):
        assert f"\n  {name}" in listing
        taught = run("views", name, "--help")
        assert (taught.code, f"datapatterns views {name}" in taught.out) == (0, True)


def test_a_worker_refreshes_views_until_sigterm(
    shop: Engine, app: tuple[str, str], tmp_path: Path
) -> None:
    process = start("worker", "--populate-views", "--json", *app, cwd=tmp_path)
    try:
        for statement in ("UPDATE line SET cents = 1", "DELETE FROM line WHERE week = 3"):
            execute(shop, statement)
            wait_until(
                lambda: not differences(shop, WEEKLY, weekly_sales()), deadline_seconds=SECONDS
            )
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.communicate()

    assert process.returncode == 0, err
    assert json.loads(out)["views_refreshed"] >= 2


def test_a_worker_does_what_is_due_once(run: Run, filled: Engine, app: tuple[str, str]) -> None:
    execute(
        filled,
        "DELETE FROM line",
        "UPDATE datapatterns.change_consumer SET advanced_at = now() - interval '1 h'",
    )

    (done,) = rows(run("worker", "--once", "--json", *app))

    assert done["views_refreshed"] == 1
    assert differences(filled, WEEKLY, weekly_sales()) == 0
    assert differences(filled, LARGEST, largest_lines()) > 0


def test_until_caught_up_refreshes_every_view_that_workers_refresh(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    assert run("worker", "--until-caught-up", *app).code == 4

    (done,) = rows(run("worker", "--until-caught-up", "--populate-views", "--json", *app))

    assert done["views_refreshed"] >= 1
    assert differences(shop, WEEKLY, weekly_sales()) == 0
    with shop.connect() as conn:
        kept = conn.execute(text("SELECT count(*) FROM datapatterns.projection_worker"))
    assert kept.scalar() == 0


def test_only_a_view_can_be_run(run: Run, filled: Engine, app: tuple[str, str]) -> None:
    execute(filled, "DELETE FROM line")

    (done,) = rows(run("worker", "--until-caught-up", "--only", "weekly_sales", "--json", *app))

    assert done["events"] == 0
    assert differences(filled, WEEKLY, weekly_sales()) == 0
    assert run("worker", "--once", "--only", "no_such_thing", *app).code == 2
