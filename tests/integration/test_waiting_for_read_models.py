"""Read your own writes, and see how far behind a read model is."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, create_engine

from datapatterns.cqrs import Projections
from datapatterns.errors import ProjectionStoppedError, ReadModelBehindError, UnavailableError
from datapatterns.event_sourcing import EventStore
from tests.fixtures.colours import Call
from tests.fixtures.read_models import (
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

STORE = EventStore()


@dataclass
class ManualClock:
    """Time that passes by sleeping only."""

    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def test_a_write_is_visible_once_it_has_been_waited_for(shop: Engine) -> None:
    projections = Projections(STORE)
    waiting = threading.Event()

    class Signal(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds / 1_000)
            waiting.set()

    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    waiter = Projections(STORE, clock=Signal())
    with ThreadPoolExecutor() as pool:
        waited = pool.submit(waiter.wait, shop, SalesByProduct, token, timeout_seconds=60)
        assert waiting.wait(timeout=30)
        projections.run(shop, SalesByProduct)

        assert waited.result(timeout=30) >= token
    assert sales(shop)["milk"] == (1, 1, "1")


def test_a_wait_that_is_too_short_says_how_far_it_got(shop: Engine) -> None:
    clock = ManualClock()
    projections = Projections(STORE, clock=clock)
    first = append_all(shop, STORE, [ItemScanned("milk", 1)])
    with pytest.raises(ReadModelBehindError) as never_run:
        projections.wait(shop, SalesByProduct, first, timeout_seconds=1)
    projections.run(shop, SalesByProduct)
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    with pytest.raises(UnavailableError) as behind:
        projections.wait(shop, SalesByProduct, token, timeout_seconds=1)

    assert never_run.value.position is None
    assert isinstance(behind.value, ReadModelBehindError)
    assert (behind.value.position, behind.value.token) == (first, token)
    assert clock.slept[:3] == [0.002, 0.004, 0.008]
    assert max(clock.slept) == 0.05
    assert clock.seconds == pytest.approx(2)


def test_a_wait_that_has_no_time_looks_once(shop: Engine) -> None:
    clock = ManualClock()
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    with pytest.raises(ReadModelBehindError):
        Projections(STORE, clock=clock).wait(shop, SalesByProduct, token, timeout_seconds=0)

    assert clock.slept == []


def test_a_wait_for_a_stopped_projection_says_what_stopped_it(shop: Engine) -> None:
    projections = Projections(STORE)
    token = append_all(shop, STORE, [ItemScanned("x" * 21, 1)])
    with pytest.raises(ProjectionStoppedError):
        projections.run(shop, SalesByProduct)

    with pytest.raises(ReadModelBehindError, match=r"test\.item_scanned at 1: DataError"):
        projections.wait(shop, SalesByProduct, token, timeout_seconds=0)


def test_a_wait_on_an_engine_of_repeatable_read_sees_what_happens(shop: Engine) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])

    class RunsMeanwhile(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            Projections(STORE).run(shop, SalesByProduct)

    waiter = Projections(STORE, clock=RunsMeanwhile())
    assert waiter.wait(strict, SalesByProduct, token, timeout_seconds=1) == token
    strict.dispose()


def test_a_wait_does_not_keep_the_connection_that_the_runner_needs(shop: Engine) -> None:
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    single = create_engine(shop.url, pool_size=1, max_overflow=0, pool_timeout=30)

    class RunningClock(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            Projections(STORE).catch_up(single, SalesByProduct)

    position = Projections(STORE, clock=RunningClock()).wait(
        single, SalesByProduct, token, timeout_seconds=1
    )
    single.dispose()

    assert position == token


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_that_would_find_or_do_nothing_are_refused(shop: Engine, limit: int) -> None:
    projections = Projections(STORE)

    with pytest.raises(ValueError, match="at least 1"):
        projections.verify(shop, SalesByProduct, limit=limit)
    with pytest.raises(ValueError, match="at least 1"):
        projections.run(shop, SalesByProduct, pages_max=limit)
    with pytest.raises(ValueError, match="lease"):
        Projections(STORE, lease_seconds=limit)


def test_status_shows_staleness_in_positions_and_seconds(shop: Engine) -> None:
    projections = Projections(STORE)
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    projections.run(shop, SalesByProduct)
    with shop.begin() as conn:
        (fresh,) = projections.status(conn)
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 3)
    with shop.begin() as conn:
        (stale,) = projections.status(conn)

    assert (fresh.name, fresh.version, fresh.kind, fresh.status) == (
        "sales_by_product",
        1,
        "table",
        "live",
    )
    assert (fresh.positions_behind, fresh.seconds_behind) == (0, 0.0)
    assert (stale.position, stale.positions_behind) == (1, 3)
    assert 0 < stale.seconds_behind < 60
    assert stale.owner is None
    assert stale.error is None


def test_looking_is_an_operation_like_any_other(shop: Engine, call: Call) -> None:
    projections = Projections(STORE)
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    projections.run(shop, SalesByProduct)

    assert call(projections.position, SalesByProduct) == token
    assert [status.position for status in call(projections.status)] == [token]


def test_catching_up_waits_for_a_runner_that_has_the_lease(shop: Engine) -> None:
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    entered, leave = threading.Event(), threading.Event()

    def hold(_done: object) -> None:
        entered.set()
        assert leave.wait(timeout=30)

    class Lets(ManualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds / 1_000)
            leave.set()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(Projections(STORE).catch_up, shop, SalesByProduct, on_page=hold)
        assert entered.wait(timeout=30)
        later = append_all(shop, STORE, [ItemScanned("milk", 1)])
        done = Projections(STORE, clock=Lets()).catch_up(
            shop, SalesByProduct, until=later, timeout_seconds=60
        )
        assert first.result(timeout=30).position >= token

    assert done.position >= later
    assert sales(shop)["milk"][0] == 2
