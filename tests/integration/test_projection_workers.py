"""Several workers share what is declared, take over from each other, and lose or double nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Event, Thread

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.cqrs import (
    InlineProjections,
    Message,
    Projection,
    Projections,
    ProjectionWorker,
    on,
)
from datapatterns.cqrs.running.working import LONG_PAGE_LEASES
from datapatterns.event_sourcing import EventStore, Position, RecordedEvent
from datapatterns.runtime import RelayLoop, Worker
from datapatterns.testing import ManualClock, wait_until
from datapatterns.testing.faults import halted_at
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


def test_a_worker_with_long_leases_has_its_share_beside_one_with_short_ones(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    short, long = (replace(projections, lease_seconds=seconds).worker() for seconds in (0.5, 60))
    step(short, shop, clock)
    projections.split_into(shop, SalesByProduct, 4)
    step(short, shop, clock)
    step(short, shop, clock)
    before = len(short.positions())

    step(long, shop, clock)
    with shop.begin() as conn:  # it says so again in 20 seconds
        conn.execute(
            text("UPDATE datapatterns.projection_worker SET seen_at = now() - interval '1s'")
        )
    step(short, shop, clock)

    assert (before, len(short.positions())) == (4, 2)
    assert step(long, shop, clock) == 0
    assert len(long.positions()) >= 2


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


def test_what_no_worker_moves_on_is_not_behind(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    """Or a worker that ends when all have caught up would wait for ever."""
    append_all(shop, STORE, [MILK])
    worker = projections.worker([SalesByProduct, Doubled])
    step(worker, shop, clock)
    projections.rebuild(shop, Doubled)
    keeping = EventStore(inline=InlineProjections((Doubled,)))
    token = append_all(shop, STORE, [MILK])
    clock.advance(1)
    with shop.connect() as conn:
        worker.beat(conn)
        behind = worker.behind(conn, token)

    step(worker, shop, clock)
    projections.retire(shop, SalesByProduct)
    projections.make_inline(shop, Doubled)
    token = append_all(shop, keeping, [MILK])
    step(worker, shop, clock)

    with shop.connect() as conn:
        assert worker.behind(conn, token) == []
    assert behind == [("sales_by_product", 1), ("sales_by_product", 2)]


def test_the_view_is_the_fold_of_the_log(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    events = [ItemScanned(f"p{n % 7}", n) for n in range(50)]
    append_all(shop, STORE, events)

    step(projections.worker(page_events=7), shop, clock)

    assert sales(shop) == expected_sales((event, "1") for event in events)
    assert projections.verify(shop, SalesByProduct).matches


def test_a_barrier_below_what_an_idle_worker_has_seen_is_stood_at_exactly(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    append_all(shop, STORE, [MILK])
    worker = projections.worker()
    step(worker, shop, clock)
    barrier = append_all(shop, STORE, [DoorOpened()])
    append_all(shop, STORE, [DoorOpened()])
    worker.step(shop)  # it sees them, and does not write that down
    with shop.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.projection_shard"
                " SET barrier = :barrier, barrier_until = now() + interval '1 h'"
            ),
            {"barrier": barrier},
        )

    for _ in range(4):
        clock.advance(0.25)
        worker.step(shop)

    assert position(shop, projections) == barrier


def lease_until(engine: Engine) -> float:
    with engine.begin() as conn:
        until = conn.scalar(
            text("SELECT extract(epoch FROM lease_until) FROM datapatterns.projection_shard")
        )
        return float(until or 0)


def test_a_page_that_takes_longer_than_the_lease_keeps_it(shop: Engine) -> None:
    projections = Projections(STORE, lease_seconds=0.3, declared=[SalesByProduct])
    append_all(shop, STORE, [MILK])
    loop = Worker(shop, projections.worker(), threads=1)
    thread = Thread(target=loop.run)

    with halted_at("projection.page-applied") as page:
        thread.start()
        page.wait()
        claimed = lease_until(shop)
        wait_until(lambda: lease_until(shop) > claimed + 0.6, deadline_seconds=60)
        other = projections.worker()
        assert other.step(shop).held == 0
        page.release()
    wait_until(lambda: sales(shop) == {"milk": (1, 1, "1")}, deadline_seconds=60)
    loop.stop()
    thread.join()

    assert projections.verify(shop, SalesByProduct).matches


def test_a_page_that_hangs_loses_its_segment_in_the_end(
    shop: Engine, projections: Projections, clock: ManualClock
) -> None:
    hangs, go_on = Event(), Event()

    class Hanging(Projection, into=ProductSales, version=1, name="sales_by_product"):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
            hangs.set()
            assert go_on.wait(60)
            row.quantity += 1

    append_all(shop, STORE, [MILK])
    hung, heir = projections.worker([Hanging]), projections.worker()

    def with_conn(work: Callable[[Connection], object]) -> None:
        with shop.connect() as conn:
            work(conn.execution_options(isolation_level="READ COMMITTED"))

    with_conn(hung.beat)
    thread = Thread(target=with_conn, args=(hung.turn,))
    thread.start()
    assert hangs.wait(60)
    clock.advance(projections.lease_seconds * LONG_PAGE_LEASES + 1)
    let_leases_lapse(shop)
    with_conn(hung.beat)
    assert step(heir, shop, clock) == 1
    go_on.set()
    thread.join()

    assert sales(shop) == {"milk": (1, 1, "1")}
    assert owners(shop) == [heir.terms.owner]


def test_messages_are_relayed_by_a_loop_beside_the_projections(shop: Engine) -> None:
    class Telling(Projection, into=ProductSales, version=1, messages=True):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            row.quantity += 1
            self.emit("scanned", {"product": e.product}, key=e.product)

    published: list[Message] = []
    append_all(shop, STORE, [MILK] * 3)
    projections = Projections(STORE, declared=[Telling])
    loop = Worker(shop, projections.worker(), [RelayLoop(shop, published.append, seconds=0.01)])
    thread = Thread(target=loop.run)
    thread.start()
    try:
        wait_until(lambda: len(published) == 3, deadline_seconds=60)
    finally:
        loop.stop()
        thread.join()

    assert [message.topic for message in published] == ["scanned"] * 3
