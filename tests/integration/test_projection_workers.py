"""Several workers share what is declared, take over from each other, and lose or double nothing."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projection, Projections, on
from datapatterns.cqrs.running.working import ProjectionWorker
from datapatterns.event_sourcing import EventStore, Position, RecordedEvent
from datapatterns.testing import ManualClock
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
MILK = ItemScanned("milk", 1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def projections(clock: ManualClock) -> Projections:
    return Projections(STORE, clock=clock, declared=[SalesByProduct])


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def step(worker: ProjectionWorker, engine: Engine, clock: ManualClock) -> int:
    """Let a second pass, then let the worker do all there is to do."""
    clock.advance(1)
    return sum(iter_steps(worker, engine))


def iter_steps(worker: ProjectionWorker, engine: Engine) -> Iterator[int]:
    while (done := worker.step(engine)).events:
        yield done.events


def owners(engine: Engine) -> list[str | None]:
    with engine.begin() as conn:
        return list(
            conn.scalars(
                text(
                    "SELECT CASE WHEN lease_until > clock_timestamp() THEN owner END"
                    " FROM datapatterns.projection_shard ORDER BY name, version, shard"
                )
            )
        )


def let_leases_lapse(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET lease_until = now() - interval '1s'")
        )


def position(engine: Engine, projections: Projections) -> Position | None:
    with engine.begin() as conn:
        return projections.position(conn, SalesByProduct)


def test_a_worker_moves_on_what_is_declared(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK] * 3)
    worker = projections.worker()

    assert step(worker, shop, clock) == 3
    append_all(shop, STORE, [MILK])
    assert step(worker, shop, clock) == 1

    assert sales(shop)["milk"][0] == 4


def test_a_second_worker_leaves_the_segment_to_the_first_and_takes_it_when_that_goes(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK])
    first, second = projections.worker(), projections.worker()

    assert step(first, shop, clock) == 1
    append_all(shop, STORE, [MILK])
    assert step(second, shop, clock) == 0
    with shop.connect() as conn:
        first.leave(conn)
    assert step(second, shop, clock) == 1

    assert owners(shop) == [second.terms.owner]


def test_a_worker_that_died_is_followed_by_another_when_its_lease_lapses(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK])
    dead, heir = projections.worker(), projections.worker()
    step(dead, shop, clock)
    append_all(shop, STORE, [MILK])
    step(heir, shop, clock)

    let_leases_lapse(shop)
    assert step(heir, shop, clock) == 1

    assert owners(shop) == [heir.terms.owner]
    append_all(shop, STORE, [MILK])
    assert step(dead, shop, clock) == 0  # it was only slow, and finds out
    assert step(heir, shop, clock) == 1
    assert sales(shop)["milk"][0] == 3


def test_an_idle_worker_keeps_its_lease(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    worker = projections.worker()
    step(worker, shop, clock)
    with shop.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET lease_until = now() + interval '1s'")
        )

    clock.advance(projections.lease_seconds / 2)
    step(worker, shop, clock)

    with shop.begin() as conn:
        left = conn.scalar(
            text(
                "SELECT extract(epoch FROM lease_until - clock_timestamp())"
                " FROM datapatterns.projection_shard"
            )
        )
    assert left is not None
    assert left > projections.lease_seconds / 2


def test_what_concerns_nobody_is_written_down_now_and_then_only(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    worker = projections.worker()
    token = append_all(shop, STORE, [MILK])
    step(worker, shop, clock)

    append_all(shop, STORE, [DoorOpened()])
    worker.step(shop)
    clock.advance(0.01)
    latest = append_all(shop, STORE, [DoorOpened()])
    worker.step(shop)
    assert position(shop, projections) == token
    clock.advance(0.25)
    worker.step(shop)

    assert position(shop, projections) == latest


def test_what_was_seen_but_not_written_down_is_read_again_after_a_crash(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    worker = projections.worker()
    append_all(shop, STORE, [MILK])
    step(worker, shop, clock)
    token = append_all(shop, STORE, [DoorOpened()])
    worker.step(shop)
    (seen,) = worker.positions().values()
    assert seen == token

    with shop.begin() as conn:  # as a crash leaves it that loses what was never flushed
        conn.execute(text("SELECT pg_stat_reset_shared('bgwriter')"))
        conn.execute(text("SELECT setval('datapatterns.event_position', 1)"))
        conn.execute(text("ALTER TABLE datapatterns.event DISABLE TRIGGER ALL"))
        conn.execute(text("DELETE FROM datapatterns.event WHERE position = 2"))
        conn.execute(text("ALTER TABLE datapatterns.event ENABLE TRIGGER ALL"))
    shop.dispose()
    assert append_all(shop, STORE, [MILK], basket="2") == token
    assert step(worker, shop, clock) == 0  # it notices, and takes its segments anew
    assert step(worker, shop, clock) == 1

    assert sales(shop)["milk"][0] == 2


class Doubled(Projection, into=ProductSales, version=2, name="sales_by_product"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 2


def test_a_version_that_is_not_built_yet_waits_and_the_live_one_goes_on(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK])
    old, new = projections.worker(), projections.worker([Doubled])
    step(old, shop, clock)

    append_all(shop, STORE, [MILK])
    assert step(new, shop, clock) == 0
    assert not new.troubles
    assert step(old, shop, clock) == 1
    projections.rebuild(shop, Doubled)
    append_all(shop, STORE, [MILK])
    assert step(old, shop, clock) == 1, "it goes on in a table of its own"
    assert step(new, shop, clock) == 1

    assert projections.verify(shop, SalesByProduct).matches
    assert sales(shop)["milk"][0] == 6


def test_the_view_is_the_fold_of_the_log(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    events = [ItemScanned(f"p{n % 7}", n) for n in range(50)]
    append_all(shop, STORE, events)

    step(projections.worker(page_events=7), shop, clock)

    assert sales(shop) == expected_sales((event, "1") for event in events)
    assert projections.verify(shop, SalesByProduct).matches
