"""`datapatterns projections`, as people and programs run it."""

import pytest
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projections
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing import ANY, EventStore, StreamId
from tests.fixtures.commands import Run, rows
from tests.fixtures.read_models import ItemScanned, SalesByProduct, append_all, create_tables

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
STREAM = StreamId("basket", "slow")


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
