"""Whoever builds, promotes or retires a version dies at each dangerous moment."""

import pytest
from sqlalchemy import URL, Engine

from datapatterns.cqrs import RedisChanges, RedisProjection, on
from datapatterns.event_sourcing import RecordedEvent
from tests.fixtures import doomed_workers as workers
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.read_models import (
    Dashboard,
    DoubledSales,
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

SCANNED = [ItemScanned("apple", 30), ItemScanned("pear", 50), ItemScanned("apple", 40)]


def written(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, workers.STORE, SCANNED)
    return engine


@pytest.mark.parametrize(("failpoint", "visit"), workers.BUILDING)
def test_a_build_or_promotion_that_died_shows_one_version_whole_and_is_done_again(
    shop: Engine, failpoint: str, visit: int
) -> None:
    projections = workers.projections()
    projections.catch_up(shop, SalesByProduct)
    before = sales(shop)

    run_until_failpoint(workers.build_the_next_version, failpoint, written(shop.url), visit=visit)

    doubled = {name: (2 * q, 2 * cents, basket) for name, (q, cents, basket) in before.items()}
    promoted = failpoint == "promote.committed"
    assert sales(shop) == (doubled if promoted else before)
    append_all(shop, workers.STORE, SCANNED)
    # What a promoter that died has left holds up the live version until it expires at most.
    projections.catch_up(shop, DoubledSales if promoted else SalesByProduct, timeout_seconds=30)
    projections.rebuild(shop, DoubledSales)
    assert sales(shop) == {
        name: (2 * quantity, 2 * cents, basket)
        for name, (quantity, cents, basket) in expected_sales(
            [(scanned, "1") for scanned in SCANNED * 2]
        ).items()
    }
    projections.catch_up(shop, SalesByProduct, timeout_seconds=30)
    assert projections.verify(shop, DoubledSales).matches
    assert projections.verify(shop, SalesByProduct).matches


@pytest.mark.redis
@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize(("failpoint", "visit"), workers.RETIRING_IN_REDIS)
def test_a_version_that_was_forgotten_in_redis_only_is_retired_again(
    shop: Engine, redis_url: str, failpoint: str, visit: int
) -> None:
    class NextDashboard(RedisProjection, version=2, name=Dashboard.name):
        @on(ItemScanned)
        def _(self, changes: RedisChanges, e: ItemScanned, _meta: RecordedEvent) -> None:
            changes.increment("cents_by_product", e.product, e.cents)

    projections = workers.projections(redis_url)
    projections.catch_up(shop, Dashboard)
    projections.catch_up(shop, NextDashboard)

    run_until_failpoint(
        workers.retire_in_redis, failpoint, written(shop.url), redis_url, visit=visit
    )
    projections.retire(shop, Dashboard)

    with shop.begin() as conn:
        statuses = {one.version: one.status for one in projections.status(conn)}
    assert statuses == {1: "retired", 2: "live"}
    assert projections.view(NextDashboard).hash("cents_by_product")
