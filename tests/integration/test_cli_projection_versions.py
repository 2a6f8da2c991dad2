"""`datapatterns projections rebuild|promote|rollback|retire`, as people and programs run them."""

from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from datapatterns.cqrs import Projections
from datapatterns.event_sourcing import EventStore
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.read_models import (
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)
from tests.integration.test_cli_promises import assert_json, contents

pytestmark = pytest.mark.postgres

STORE = EventStore()

APP = """
from datapatterns import DataLayer
from tests.fixtures.read_models import DoubledSales, SalesByProduct

layer = DataLayer({url!r}, projections=[SalesByProduct, DoubledSales])
"""


@pytest.fixture
def app(
    database_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> tuple[str, str]:
    name = f"versions_app_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--app", f"{name}:layer"


def test_a_version_is_built_promoted_put_back_and_retired(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 1)] * 30)
    Projections(STORE).catch_up(engine, SalesByProduct)

    def told(*arguments: str) -> dict[str, object]:
        ran = run("projections", *arguments, "--json", *app)
        (row,) = rows(ran)
        return row

    planned = told("rebuild", "sales_by_product", "--dry-run")
    built = told("rebuild", "sales_by_product", "--no-promote", "--page-events", "5")
    would = told("promote", "sales_by_product", "--dry-run")
    before = sales(engine)["milk"][0]
    promoted = told("promote", "sales_by_product")
    after = sales(engine)["milk"][0]
    back = told("rollback", "sales_by_product")
    asked = run("projections", "retire", "sales_by_product", "--version", "2", "--json", *app)
    gone = told("retire", "sales_by_product", "--version", "2", "--yes")

    assert (planned["in_place"], planned["done"]) == (False, False)
    assert (built["status"], built["events"]) == ("ready", 30)
    assert (would["instead_of"], would["done"]) == (1, False)
    assert (before, after) == (30, 60)
    assert promoted["instead_of"] == 1
    assert (back["version"], sales(engine)["milk"][0]) == (1, 30)
    assert (asked.code, asked.out, "--yes" in asked.err) == (2, "", True)
    assert gone["dropped"] == ["public.product_sales__v2"]


def test_what_is_refused_says_what_instead(run: Run, engine: Engine, app: tuple[str, str]) -> None:
    create_tables(engine)
    Projections(STORE).catch_up(engine, SalesByProduct)

    ran = run("projections", "promote", "sales_by_product", *app)

    assert ran.code == 2
    assert "rebuild it first" in ran.err


def test_progress_is_told_with_rate_and_time_left(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 1)] * 30)
    Projections(STORE).catch_up(engine, SalesByProduct)

    ran = run("projections", "rebuild", "sales_by_product", "--page-events", "5", *app)

    assert ran.code == 0
    assert "events/s" in ran.err
    assert "s left" in ran.err


def test_a_dry_run_changes_nothing(run: Run, engine: Engine, app: tuple[str, str]) -> None:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 1)] * 3)
    Projections(STORE).catch_up(engine, SalesByProduct)
    steps = [
        ("rebuild", "sales_by_product", "--no-promote"),
        ("promote", "sales_by_product"),
        ("rollback", "sales_by_product"),
        ("retire", "sales_by_product", "--version", "2", "--yes"),
    ]

    for step in steps:
        before = contents(engine)
        would = run("projections", *step, "--dry-run", *app)
        unchanged = contents(engine) == before
        really = run("projections", *step, *app)

        assert (would.code, unchanged, really.code) == (0, True, 0), (step, would, really)
        assert contents(engine) != before


def test_programs_are_told_in_json_what_failed(
    run: Run, engine: Engine, app: tuple[str, str]
) -> None:
    create_tables(engine)
    away = ("--database-url", "postgresql://ann:hidden@127.0.0.1:1/shop")
    for step in (
        ("rebuild", "sales_by_product"),
        ("promote", "sales_by_product"),
        ("rollback", "sales_by_product"),
        ("retire", "sales_by_product", "--version", "7", "--yes"),
        ("run", "sales_by_product"),
        ("split", "sales_by_product"),
        ("merge", "sales_by_product"),
    ):
        assert_json(run("projections", *step, "--json", *app), 0, 2, 3)
        failed = run("projections", *step, "--json", *away)
        assert_json(failed, 2, 4)
        assert "hidden" not in failed.out + failed.err
