"""Runners of a read model that meet, die, lose their lease, or are overtaken by a rebuild."""

from functools import partial

import pytest
from sqlalchemy import Connection, Engine, text

from datapatterns.cqrs import Answer, Projections
from datapatterns.cqrs import projections as projections_module
from datapatterns.cqrs.reading import answering, log_identity
from datapatterns.cqrs.reading.querying import SNAPSHOT
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.errors import LeaseHeldError, LeaseLostError, ReadModelBehindError
from datapatterns.event_sourcing import Position
from datapatterns.testing import ManualClock
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most, torture
from tests.fixtures.read_models import SalesByProduct, create_tables
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import statements_without, table_without
from tests.interleavings.till import STORE, WITHOUT_FENCING, Till

pytestmark = pytest.mark.postgres

PREEMPTIONS = 2 if THOROUGH else 1
LEASES = (LeaseHeldError, LeaseLostError)
QUANTITY = text("SELECT coalesce(sum(quantity), 0) FROM product_sales WHERE product = :product")


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> None:
    create_tables(plain)


@pytest.fixture
def projections() -> Projections:
    return Projections(STORE, clock=ManualClock())


@pytest.fixture
def till(plain: Engine, projections: Projections) -> Till:
    with plain.begin() as conn:
        conn.execute(text("DELETE FROM product_sales"))  # what a test without a guard has left
    till = Till(plain, projections, SalesByProduct)
    till.let_leases_lapse(plain)
    projections.rebuild(plain, SalesByProduct)
    return till


def quantity(conn: Connection, till: Till) -> int:
    return int(conn.execute(QUANTITY, {"product": till.product}).scalar_one())


def each_event_counts_once(till: Till, plain: Engine, _outcome: Outcome) -> None:
    till.settle()
    with plain.begin() as conn:
        counted = quantity(conn, till)
    assert counted == till.scanned(), f"{till.scanned()} were scanned, {counted} are counted"


# -- P3: a lease that was lost ---------------------------------------------------------------------


class Lapsing:
    """Two runners, and a lease that lapses under the feet of whoever holds it."""

    def __init__(self, gated: Engine, till: Till, projections: Projections) -> None:
        self._gated, self._till = gated, till
        self._run = partial(projections.run, gated, SalesByProduct)

    def tasks(self) -> Tasks:
        self._till.open(scanned=2)
        return {
            "zombie": self._run,
            "lapse": partial(self._till.let_leases_lapse, self._gated),
            "heir": self._run,
        }


def test_of_two_runners_only_one_moves_on_even_when_a_lease_lapses_unnoticed(
    explorer: Explorer, gated: Engine, plain: Engine, till: Till, projections: Projections
) -> None:
    explored = explorer.explore(
        Lapsing(gated, till, projections).tasks,
        invariant=partial(each_event_counts_once, till, plain),
        max_preemptions=PREEMPTIONS,
        allowed_errors=LEASES,
        max_schedules=at_most(20),
    )

    assert explored.schedules > 10


@torture
def test_without_fencing_a_runner_that_lost_its_lease_applies_its_page_again(
    explorer: Explorer, gated: Engine, plain: Engine, till: Till, projections: Projections
) -> None:
    with (
        statements_without(gated, WITHOUT_FENCING),
        table_without(plain, "datapatterns.projection_shard", "ck_projection_shard_leased"),
        pytest.raises(InterleavingError, match="are counted"),
    ):
        explorer.explore(
            Lapsing(gated, till, projections).tasks,
            invariant=partial(each_event_counts_once, till, plain),
            allowed_errors=LEASES,
        )


# -- P1: effects and checkpoint -------------------------------------------------------------------


def running(gated: Engine, till: Till, projections: Projections) -> Tasks:
    till.open(scanned=2)
    pages = {"pages_max": 2, "page_events": 1} if THOROUGH else {}
    return {"runner": partial(projections.run, gated, SalesByProduct, **pages)}


def test_a_runner_may_die_anywhere_and_each_event_counts_once(
    explorer: Explorer, gated: Engine, plain: Engine, till: Till, projections: Projections
) -> None:
    explored = explorer.explore(
        partial(running, gated, till, projections),
        invariant=partial(each_event_counts_once, till, plain),
        crash_at=lambda _: True,
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
    )

    assert explored.exhausted


def test_a_checkpoint_of_its_own_transaction_would_count_events_twice(
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
    till: Till,
    projections: Projections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = TableRunner._advance  # noqa: SLF001 -- the guard

    def apart(self: TableRunner, conn: Connection, lease: Lease, position: Position) -> Lease:
        conn.connection.driver_connection.commit()  # type: ignore[union-attr] # psycopg's
        return together(self, conn, lease, position)

    monkeypatch.setattr(TableRunner, "_advance", apart)
    with pytest.raises(InterleavingError, match="are counted"):
        explorer.explore(
            partial(running, gated, till, projections),
            invariant=partial(each_event_counts_once, till, plain),
            crash_at=lambda _: True,
            faults=[Fault.CRASH],
        )


# -- P4: a rebuild beside a runner and a writer ---------------------------------------------------


class Rebuilding:
    """A rebuild, a runner with a page under way, and another item that is scanned."""

    def __init__(self, gated: Engine, till: Till, projections: Projections) -> None:
        self._gated, self._till, self._projections = gated, till, projections

    def tasks(self) -> Tasks:
        self._till.open(scanned=1)
        return {
            "runner": partial(self._projections.run, self._gated, SalesByProduct),
            "rebuild": partial(self._projections.rebuild, self._gated, SalesByProduct),
            "scan": partial(self._till.scan, self._gated),
        }


def test_a_rebuild_beside_a_runner_and_a_writer_is_as_if_each_were_alone(
    explorer: Explorer, gated: Engine, plain: Engine, till: Till, projections: Projections
) -> None:
    def is_whole(outcome: Outcome) -> None:
        each_event_counts_once(till, plain, outcome)
        assert projections.verify(plain, SalesByProduct).matches

    explored = explorer.explore(
        Rebuilding(gated, till, projections).tasks,
        invariant=is_whole,
        max_preemptions=1,
        allowed_errors=LEASES,
        max_schedules=at_most(12),
    )

    assert explored.schedules > 10


@torture
def test_without_fencing_a_page_is_applied_to_the_rows_of_a_rebuild_that_has_it_already(
    explorer: Explorer, gated: Engine, plain: Engine, till: Till, projections: Projections
) -> None:
    with (
        statements_without(gated, WITHOUT_FENCING),
        table_without(plain, "datapatterns.projection_shard", "ck_projection_shard_leased"),
        pytest.raises(InterleavingError, match="are counted"),
    ):
        explorer.explore(
            Rebuilding(gated, till, projections).tasks,
            invariant=partial(each_event_counts_once, till, plain),
            max_preemptions=1,
            allowed_errors=LEASES,
        )


# -- P7: waiting for one's own write --------------------------------------------------------------


class Waiting:
    """Somebody scans an item and waits for the read model that another runs."""

    def __init__(self, gated: Engine, till: Till, projections: Projections) -> None:
        self._gated, self._till, self._projections = gated, till, projections

    def tasks(self) -> Tasks:
        self._till.open(scanned=1)
        return {
            "customer": self._scan_and_look,
            "runner": partial(self._projections.run, self._gated, SalesByProduct),
        }

    def _scan_and_look(self) -> int:
        token = self._till.scan(self._gated)
        self._projections.wait(self._gated, SalesByProduct, token, timeout_seconds=0.006)
        with self._gated.begin() as conn:
            return quantity(conn, self._till)

    def it_is_there(self, outcome: Outcome) -> None:
        assert outcome.results.get("customer", 2) == 2, "waited for a write, and it is not there"


@pytest.fixture
def _known_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not ask once for each connection, so that each schedule takes the same steps."""
    for place in (answering, log_identity):
        monkeypatch.setattr(place, "shown_mark", lambda *_: "0" * 8)
    monkeypatch.setattr(log_identity, "log_mark", lambda *_: "0" * 8)


@pytest.mark.usefixtures("_known_log")
def test_who_has_waited_for_a_write_reads_it(
    explorer: Explorer, gated: Engine, till: Till, projections: Projections
) -> None:
    waiting, seen = Waiting(gated, till, projections), set[object]()

    def it_is_there(outcome: Outcome) -> None:
        waiting.it_is_there(outcome)
        seen.update(type(error) for error in outcome.errors.values())
        seen.update(outcome.results)

    explored = explorer.explore(
        waiting.tasks,
        invariant=it_is_there,
        max_preemptions=PREEMPTIONS,
        allowed_errors=(ReadModelBehindError,),
    )

    assert explored.exhausted
    assert {"customer", ReadModelBehindError} <= seen, "some waits were long enough, others not"


@pytest.mark.usefixtures("_known_log")
def test_a_wait_for_the_log_instead_of_the_read_model_would_read_too_early(
    explorer: Explorer,
    gated: Engine,
    till: Till,
    projections: Projections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = Waiting(gated, till, projections)

    def mark(conn: Connection, *_: object) -> Position:
        return STORE.high_water_mark(conn)

    monkeypatch.setattr(projections_module, "read_position", mark)
    with pytest.raises(InterleavingError, match="it is not there"):
        explorer.explore(
            waiting.tasks, invariant=waiting.it_is_there, allowed_errors=(ReadModelBehindError,)
        )


# -- P7: an answer as of one position --------------------------------------------------------------


class Asking:
    """Somebody scans an item and asks, while a runner and a rebuild are at it."""

    def __init__(
        self, gated: Engine, till: Till, projections: Projections, *, rebuilds: bool
    ) -> None:
        self._gated, self._till, self._projections = gated, till, projections
        self._rebuilds = rebuilds
        self.stale = set[bool]()

    def tasks(self) -> Tasks:
        self._till.open(scanned=1)
        move = self._projections.rebuild if self._rebuilds else self._projections.run
        return {
            "customer": self._scan_and_ask,
            "mover": partial(move, self._gated, SalesByProduct),
        }

    def _scan_and_ask(self) -> tuple[Answer[int], Position]:
        token = self._till.scan(self._gated)
        answer = self._projections.query(
            self._gated,
            SalesByProduct,
            partial(quantity, till=self._till),
            after=token,
            timeout_seconds=0.002,
            stale="serve",
        )
        return answer, token

    def it_is_as_of_its_position(self, outcome: Outcome) -> None:
        result = outcome.results.get("customer")
        if result is None:
            return
        answer, token = result
        assert isinstance(answer, Answer)
        shown = self._till.scanned_up_to(answer.position)
        assert answer.value == shown, f"{shown} were scanned by then, {answer.value} are counted"
        assert answer.is_stale == (answer.position < token), "it is not what it says that it is"
        self.stale.add(answer.is_stale)


@pytest.mark.usefixtures("_known_log")
@pytest.mark.parametrize("rebuilds", [False, True], ids=["runner", "rebuild"])
def test_an_answer_is_what_was_scanned_up_to_its_position(
    explorer: Explorer, gated: Engine, till: Till, projections: Projections, *, rebuilds: bool
) -> None:
    asking = Asking(gated, till, projections, rebuilds=rebuilds)

    explored = explorer.explore(
        asking.tasks,
        invariant=asking.it_is_as_of_its_position,
        max_preemptions=PREEMPTIONS,
        allowed_errors=(*LEASES, ReadModelBehindError),
        max_schedules=at_most(40),
    )

    assert explored.schedules > 10
    assert asking.stale == {False, True}, "some answers were fresh, others not"


@pytest.mark.usefixtures("_known_log")
def test_without_one_snapshot_an_answer_is_not_of_its_position(
    explorer: Explorer,
    gated: Engine,
    till: Till,
    projections: Projections,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking = Asking(gated, till, projections, rebuilds=False)

    monkeypatch.setitem(SNAPSHOT, "isolation_level", "READ COMMITTED")
    with pytest.raises(InterleavingError, match="are counted"):
        explorer.explore(
            asking.tasks,
            invariant=asking.it_is_as_of_its_position,
            max_preemptions=1,
            allowed_errors=(*LEASES, ReadModelBehindError),
        )
