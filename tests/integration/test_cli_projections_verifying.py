"""`datapatterns projections verify`, as people and programs run it."""

import json
from collections.abc import Callable
from typing import TypeAlias

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns import DataLayer
from datapatterns.cqrs import AnyProjection, Projections
from datapatterns.event_sourcing import EventStore
from tests.fixtures import read_models, set_models, unsteady
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.read_models import ItemScanned, SalesByProduct, append_all, create_tables

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)

Declare: TypeAlias = Callable[..., tuple[str, str]]


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    set_models.Base.metadata.create_all(engine)
    unsteady.Base.metadata.create_all(engine)
    append_all(engine, STORE, [ItemScanned(f"p{n}", n) for n in range(1, 21)])
    for projection in (SalesByProduct, set_models.TotalByProduct, unsteady.InTheOrderOfASet):
        PROJECTIONS.catch_up(engine, projection)
    return engine


@pytest.fixture
def declare(database_url: URL, monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Return what gives the option that names an application."""

    def declare(*projections: type[AnyProjection]) -> tuple[str, str]:
        monkeypatch.setattr(
            "tests.fixtures.read_models.layer",
            lambda: DataLayer(shown(database_url), projections=projections),
            raising=False,
        )
        return ("--app", f"{read_models.__name__}:layer")

    return declare


@pytest.fixture
def app(declare: Declare) -> tuple[str, str]:
    return declare(SalesByProduct, set_models.TotalByProduct)


def spoil(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(text("UPDATE product_sales SET cents = 900 WHERE product = 'p3'"))
        conn.execute(text("DELETE FROM product_sales WHERE product = 'p4'"))


def test_all_that_is_declared_is_compared(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    ran = run("projections", "verify", "--json", *app)
    sales, totals = rows(ran)

    assert ran.code == 0
    assert (sales["name"], sales["version"], sales["matches"]) == ("sales_by_product", 1, True)
    assert (sales["rows"], sales["share"], sales["seed"]) == (20, 1.0, None)
    assert (sales["differences"], sales["unsteady"]) == ([], None)
    assert (totals["name"], totals["matches"], totals["rows"]) == ("total_by_product", True, 20)
    del shop


def test_what_differs_is_told_to_people(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    spoil(shop)

    ran = run("projections", "verify", *app)

    assert ran.code == 5
    assert "cents 900" in ran.out
    assert "cents 3" in ran.out
    assert "no row" in ran.out
    assert "not what the log says: sales_by_product" in ran.err
    assert "datapatterns projections rebuild sales_by_product" in ran.err
    assert "total_by_product" not in ran.err


def test_what_differs_is_told_to_programs(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    spoil(shop)

    ran = run("projections", "verify", "sales_by_product", "--limit", "1", "--json", *app)
    sales = json.loads(ran.out)

    assert ran.code == 5
    assert sales["differences"] == [
        {
            "table": "product_sales",
            "key": ["p3"],
            "stored": {"quantity": 1, "cents": 900, "last_basket": "1"},
            "expected": {"quantity": 1, "cents": 3, "last_basket": "1"},
        }
    ]
    assert json.loads(ran.err.splitlines()[-1])["error"] == "CorruptionError"


@pytest.mark.parametrize("amount", ["0.5", "50%", "10"])
def test_a_sample_is_told_with_its_seed(
    run: Run, shop: Engine, app: tuple[str, str], amount: str
) -> None:
    asked = ("projections", "verify", "--sample", amount, "--seed", "7", "--json")
    ran = run(*asked, *app)
    sales, totals = rows(ran)

    assert ran.code == 0
    assert (sales["share"], sales["seed"]) == (0.5, 7)
    assert 0 < sales["rows"] < 20
    assert (totals["share"], totals["rows"]) == (1.0, 20)
    assert "total_by_product is verified whole" in ran.err
    del shop


@pytest.mark.parametrize("amount", ["0", "1.5", "101%", "-1", "some", "nan"])
def test_what_is_no_sample_is_refused(
    run: Run, shop: Engine, app: tuple[str, str], amount: str
) -> None:
    ran = run("projections", "verify", f"--sample={amount}", *app)

    assert ran.code == 2
    assert "neither a share" in ran.err
    del shop


def test_methods_that_depend_on_more_than_the_event_are_told(
    run: Run, shop: Engine, declare: Declare
) -> None:
    app = declare(unsteady.InTheOrderOfASet)

    told = run("projections", "verify", "notes", "--determinism", *app)
    row = json.loads(run("projections", "verify", "notes", "--determinism", "--json", *app).out)

    assert told.code == 5
    assert "folded in another process at position 1 (test.item_scanned): notes p1" in told.err
    assert "raise its version" in told.err
    assert row["deterministic"] is False
    assert row["unsteady"]["first"]["trial"] == "in another process"
    assert row["unsteady"]["first"]["key"] == ["p1"]
    del shop


def test_methods_that_depend_on_the_event_only_are_deterministic(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    ran = run("projections", "verify", "sales_by_product", "--determinism", "--json", *app)
    (row,) = rows(ran)

    assert ran.code == 0
    assert (row["deterministic"], row["unsteady"]["first"]) == (True, None)
    del shop


def test_what_is_not_whole_is_left_out_unless_it_is_named(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    with shop.begin() as conn:
        building = "UPDATE datapatterns.projection SET status = 'building' WHERE name = :name"
        conn.execute(text(building), {"name": "sales_by_product"})

    all_of_them = run("projections", "verify", "--json", *app)
    named = run("projections", "verify", "sales_by_product", *app)

    assert [row["name"] for row in rows(all_of_them)] == ["total_by_product"]
    assert "sales_by_product version 1 is left out: building" in all_of_them.err
    assert named.code == 4


def test_a_version_needs_a_name(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    ran = run("projections", "verify", "--version", "1", *app)

    assert ran.code == 2
    assert run("projections", "verify", "sales_by_product", "--version", "1", *app).code == 0
    del shop


def test_nothing_declared_is_refused(run: Run, shop: Engine, at: tuple[str, str]) -> None:
    ran = run("projections", "verify", *at)

    assert ran.code == 2
    assert "--app" in ran.err
    del shop
