"""Workers that claim, lose, split and move on the segments of a read model, in any order."""

from functools import partial

import pytest
from sqlalchemy import Engine, text

from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.running.segments import segment_hash
from datapatterns.errors import LeaseHeldError, LeaseLostError, SegmentsBusyError
from datapatterns.testing import ManualClock
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.effort import at_most, torture
from tests.fixtures.read_models import SalesByProduct, create_tables
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import statements_without, table_without
from tests.interleavings.till import STORE, WITHOUT_FENCING, Till

pytestmark = pytest.mark.postgres

ERRORS = (LeaseHeldError, LeaseLostError, SegmentsBusyError)
COUNTED = text("SELECT coalesce(sum(quantity), 0) FROM product_sales WHERE product = :product")


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> None:
    create_tables(plain)


@pytest.fixture
def projections() -> Projections:
    return Projections(STORE, clock=ManualClock(), declared=[SalesByProduct])


class Shop:
    """Two workers, and what happens beside them."""

    def __init__(self, gated: Engine, plain: Engine, projections: Projections) -> None:
        self._gated, self._plain, self._projections = gated, plain, projections
        self.till = Till(plain, projections, SalesByProduct)

    def open(self, *, segments: int) -> Tasks:
        self.till.settle()
        with self._plain.begin() as conn:  # those of the schedule before are gone
            conn.execute(text("DELETE FROM datapatterns.projection_worker"))
            conn.execute(
                text(
                    "UPDATE datapatterns.projection_shard"
                    " SET owner = NULL, lease_until = NULL, barrier = NULL, barrier_until = NULL"
                )
            )
        self._projections.split_into(self._plain, SalesByProduct, segments)
        self.till.open(scanned=2)
        while segment_hash(self.till.product) & 1:  # or each schedule would be another one
            self.till.open(scanned=2)
        return {name: partial(self._work, name) for name in ("first", "second")}

    def split(self) -> None:
        self._projections.split(self._gated, SalesByProduct)

    def merge(self) -> None:
        self._projections.merge(self._gated, SalesByProduct, timeout_seconds=0.1)

    def lapse(self) -> None:
        self.till.let_leases_lapse(self._gated)

    def each_event_counts_once(self, _outcome: Outcome) -> None:
        self.till.settle()
        with self._plain.begin() as conn:
            counted = conn.execute(COUNTED, {"product": self.till.product}).scalar_one()
        assert counted == self.till.scanned(), f"{counted} of {self.till.scanned()} are counted"
        assert self._projections.verify(self._plain, SalesByProduct).matches

    def _work(self, name: str) -> None:
        worker = self._projections.worker(page_events=1)
        worker.terms = LeaseTerms(name, 30)  # the plan goes by names where all else is even
        worker.step(self._gated)


@pytest.fixture
def shop(gated: Engine, plain: Engine, projections: Projections) -> Shop:
    with plain.begin() as conn:
        conn.execute(text("DELETE FROM product_sales"))  # what a test without a guard has left
    shop = Shop(gated, plain, projections)
    shop.till.let_leases_lapse(plain)
    projections.rebuild(plain, SalesByProduct)
    return shop


def with_lapsing(shop: Shop) -> Tasks:
    return {**shop.open(segments=1), "lapse": shop.lapse}


def with_splitting(shop: Shop) -> Tasks:
    return {**shop.open(segments=1), "split": shop.split}


def with_merging(shop: Shop) -> Tasks:
    return {**shop.open(segments=2), "merge": shop.merge}


def test_a_lease_that_lapses_unnoticed_between_two_workers_doubles_nothing(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(with_lapsing, shop),
        invariant=shop.each_event_counts_once,
        max_preemptions=1,
        allowed_errors=ERRORS,
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


def test_a_split_beside_two_workers_loses_and_doubles_nothing(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(with_splitting, shop),
        invariant=shop.each_event_counts_once,
        max_preemptions=1,
        allowed_errors=ERRORS,
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


def test_a_merge_beside_two_workers_loses_and_doubles_nothing(
    explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(with_merging, shop),
        invariant=shop.each_event_counts_once,
        max_preemptions=1,
        allowed_errors=ERRORS,
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


@torture
@pytest.mark.parametrize("beside", [with_lapsing, with_splitting])
def test_without_fencing_a_worker_that_lost_its_segment_applies_its_page_again(
    explorer: Explorer, gated: Engine, plain: Engine, shop: Shop, beside: object
) -> None:
    assert callable(beside)
    with (
        statements_without(gated, WITHOUT_FENCING),
        table_without(plain, "datapatterns.projection_shard", "ck_projection_shard_leased"),
        pytest.raises(InterleavingError, match="are counted"),
    ):
        explorer.explore(
            partial(beside, shop),
            invariant=shop.each_event_counts_once,
            max_preemptions=1,
            allowed_errors=ERRORS,
        )
