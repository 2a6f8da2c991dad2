"""Folding the same events twice: what makes a difference is found, with its event."""

import pytest
from redis import Redis
from sqlalchemy import Engine, text

from datapatterns.cqrs import (
    AnyProjection,
    Determinism,
    Projection,
    ProjectionProgress,
    Projections,
    on,
)
from datapatterns.errors import ProjectionStoppedError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures import unsteady
from tests.fixtures.read_models import (
    Dashboard,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
EVENTS = [ItemScanned(f"p{n % 5}", n) for n in range(1, 41)]


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    unsteady.Base.metadata.create_all(engine)
    append_all(engine, STORE, EVENTS)
    return engine


def check(
    shop: Engine, projection: type[AnyProjection], *, other_process: bool = False
) -> Determinism:
    return PROJECTIONS.check_determinism(
        shop, projection, page_events=16, other_process=other_process
    )


def test_what_depends_on_the_events_only_is_steady(shop: Engine) -> None:
    pages: list[ProjectionProgress] = []

    found = PROJECTIONS.check_determinism(
        shop, unsteady.Steady, page_events=16, on_page=pages.append
    )

    assert (found.steady, found.unsteady, found.impure) == (True, None, ())
    assert (found.position, found.events, found.untried) == (40, 40, None)
    assert [page.events for page in pages] == [16, 16, 8]


def test_chance_is_found_and_told_where(shop: Engine) -> None:
    found = check(shop, unsteady.ByChance)

    assert found.unsteady is not None
    assert (found.unsteady.trial, found.unsteady.position) == ("again", 13)
    assert (found.unsteady.event_type, found.unsteady.key) == ("test.item_scanned", ("p3",))
    assert found.unsteady.first != found.unsteady.second
    assert found.unsteady.table == "notes"
    assert "random in" in found.impure[0]
    assert "unsteady.py, line" in found.impure[0]


def test_a_clock_that_has_not_moved_on_is_told_nevertheless(shop: Engine) -> None:
    found = check(shop, unsteady.ByTheCalendar)

    assert found.unsteady is None
    assert "date.today() in" in found.impure[0]
    assert not found.steady


@pytest.mark.parametrize("projection", [unsteady.WithMemory, unsteady.SharedDocuments])
def test_what_is_kept_between_pages_is_found(shop: Engine, projection: type[Projection]) -> None:
    found = check(shop, projection)

    assert found.unsteady is not None
    assert found.unsteady.trial == "again"


@pytest.mark.parametrize("projection", [unsteady.WithinAPage, unsteady.Rounded])
def test_what_depends_on_where_a_page_ends_is_found(
    shop: Engine, projection: type[Projection]
) -> None:
    found = check(shop, projection)

    assert found.unsteady is not None
    assert found.unsteady.trial == "in smaller pages"
    assert found.impure == ()


def test_what_depends_on_the_order_of_a_set_is_found(shop: Engine) -> None:
    here = check(shop, unsteady.InTheOrderOfASet)
    found = check(shop, unsteady.InTheOrderOfASet, other_process=True)

    assert (here.steady, here.untried) == (True, "nobody asked for it")
    assert found.unsteady is not None
    assert (found.unsteady.trial, found.unsteady.position) == ("in another process", 1)


def test_what_is_changed_in_place_reaches_another_process_as_it_was(shop: Engine) -> None:
    found = check(shop, unsteady.ChangedInPlace, other_process=True)

    assert (found.unsteady, found.untried) == (None, None)


def test_what_is_parked_is_left_out_in_another_process_too(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, unsteady.Parking)

    found = check(shop, unsteady.Parking, other_process=True)

    assert (found.unsteady, found.untried) == (None, None)


def test_what_another_process_cannot_import_is_told(shop: Engine) -> None:
    class Local(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.quantity += 1

    found = check(shop, Local, other_process=True)

    assert found.steady
    assert "Local" in (found.untried or "")


def test_an_event_that_cannot_be_applied_is_told(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("p1", 1), ItemScanned("bread", -(10**9))])

    class Refusing(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            if e.cents < 0:
                raise ValueError("negative")
            row.quantity += 1

    with pytest.raises(ProjectionStoppedError) as stopped:
        check(shop, Refusing)

    assert stopped.value.position == 42


def test_nothing_of_the_read_model_is_touched(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, SalesByProduct)
    with shop.begin() as conn:
        conn.execute(text("UPDATE product_sales SET cents = 1"))

    assert check(shop, SalesByProduct).steady

    with shop.connect() as conn:
        assert conn.scalar(text("SELECT sum(cents) FROM product_sales")) == 5


@pytest.mark.redis
def test_read_models_in_redis_are_checked_in_memory(shop: Engine, redis_client: Redis) -> None:
    projections = Projections(STORE, redis=redis_client)

    def found(projection: type[AnyProjection]) -> tuple[str | None, bool]:
        report = projections.check_determinism(shop, projection, page_events=16)
        assert report.untried is None
        trial = None if report.unsteady is None else report.unsteady.trial
        return trial, bool(report.impure)

    assert found(Dashboard) == (None, False)
    assert found(unsteady.SteadyBoard) == (None, False)
    assert found(unsteady.BoardByChance) == ("again", True)
    assert found(unsteady.BoardWithinAPage) == ("in smaller pages", False)
    assert found(unsteady.BoardInTheOrderOfASet) == ("in another process", False)
    assert redis_client.dbsize() == 0


def test_statements_are_run_in_pages_of_two_sizes(shop: Engine) -> None:
    steady, found = check(shop, unsteady.SteadyStatements), check(shop, unsteady.StatementsByRange)

    assert (steady.steady, steady.events) == (True, 40)
    assert found.unsteady is not None
    assert (found.unsteady.key, found.unsteady.position) == (("p0",), None)
    assert found.untried == "statements run in the database"
