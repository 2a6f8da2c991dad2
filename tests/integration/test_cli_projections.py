"""`datapatterns projections`, as people and programs run it."""

from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.cqrs import Projections
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing import ANY, EventStore, StreamId
from tests.fixtures.commands import Run, rows
from tests.fixtures.empty_database import shown
from tests.fixtures.read_models import ItemScanned, SalesByProduct, append_all, create_tables

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
STREAM = StreamId("basket", "slow")


APP = """
from datapatterns import DataLayer
from tests.fixtures.read_models import SalesByProduct

layer = DataLayer({url!r}, projections=[SalesByProduct])
"""


@pytest.fixture
def app(
    database_url: URL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> tuple[str, str]:
    name = f"sales_app_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--app", f"{name}:layer"


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def test_status_tells_people_how_far_each_version_is(
    run: Run, shop: Engine, at: tuple[str, str]
) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 3)
    PROJECTIONS.run(shop, SalesByProduct, page_events=2)

    ran = run("projections", "status", *at)

    assert ran.code == 0
    assert "sales_by_product" in ran.out
    assert "██████░░░░ 66%" in ran.out


def test_status_tells_programs_everything(run: Run, shop: Engine, at: tuple[str, str]) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 3)
    PROJECTIONS.run(shop, SalesByProduct, page_events=2)

    (version,) = rows(run("projections", "status", "--json", "--events", *at))
    (segment,) = rows(run("projections", "status", "--json", "--segments", *at))

    assert (version["position"], version["positions_behind"], version["events_behind"]) == (2, 1, 1)
    assert (version["status"], version["segments"], version["owners"]) == ("live", 1, [])
    assert (segment["segment"], segment["lease"], segment["error"]) == ("0/1", "free", None)


def test_status_tells_what_stopped_a_projection_and_who_holds_all_of_them_back(
    run: Run, shop: Engine, at: tuple[str, str]
) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1), ItemScanned("milk", -(10**9))])
    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.catch_up(shop, SalesByProduct)
    with shop.begin() as slow:
        STORE.append(slow, STREAM, [ItemScanned("milk", 1)], expected_version=ANY)
        pid = slow.scalar(text("SELECT pg_backend_pid()"))
        ran = run("projections", "status", *at)

    assert "IntegrityError at 2" in ran.out
    assert "sales_by_product version 1 stopped at position 2: IntegrityError" in ran.err
    assert f"pid {pid}" in ran.err


@pytest.mark.usefixtures("shop")
def test_status_of_what_was_never_run_says_so(run: Run, at: tuple[str, str]) -> None:
    ran = run("projections", "status", "nothing_like_it", *at)

    assert (ran.code, ran.out) == (0, "")
    assert "nothing_like_it has never been run" in ran.err


def test_run_catches_up_with_what_is_declared(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 3)

    (first,) = rows(run("projections", "run", "--json", *app))
    again = run("projections", "run", "sales_by_product", *app)

    assert (first["name"], first["position"], first["events"]) == ("sales_by_product", 3, 3)
    assert again.code == 0
    assert "sales_by_product" in again.out
    assert run("projections", "run", "nothing_like_it", *app).code == 2


def test_what_cannot_be_run_says_which_event_it_is(
    run: Run, shop: Engine, app: tuple[str, str]
) -> None:
    append_all(shop, STORE, [ItemScanned("milk", -(10**9))])

    ran = run("projections", "run", *app)

    assert ran.code == 2
    assert "at position 1" in ran.err


def test_segments_are_split_and_merged(run: Run, shop: Engine, app: tuple[str, str]) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 3)
    run("projections", "run", *app)
    name = "sales_by_product"

    counts = [
        rows(run("projections", *words, "--json", *app))[0]["segments"]
        for words in (
            ("split", name, "--into", "4"),
            ("split", name, "--segment", "2"),
            ("merge", name),
            ("merge", name, "--segment", "1"),
            ("split", name, "--into", "1"),
        )
    ]

    assert counts == [4, 5, 4, 3, 1]
    assert run("projections", "split", name, "--into", "3", *app).code == 2
    assert run("projections", "merge", name, *app).code == 2


@pytest.mark.usefixtures("shop")
def test_every_command_of_projections_teaches(run: Run) -> None:
    listing = run("projections", "--help").out
    for name in ("status", "run", "split", "merge"):
        assert f"\n  {name}" in listing
        taught = run("projections", name, "--help")
        assert (taught.code, f"datapatterns projections {name}" in taught.out) == (0, True)
