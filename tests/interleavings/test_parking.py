"""Retries of parked events beside a runner, and relays beside each other; all may die."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, delete, select, text

from datapatterns.cqrs import Message, Projections, Relayed, relay_messages
from datapatterns.cqrs.running import leasing
from datapatterns.cqrs.schema import outbox_table
from datapatterns.cqrs.tables import retrying
from datapatterns.errors import LeaseHeldError, LeaseLostError
from datapatterns.testing import ManualClock
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.effort import THOROUGH, at_most
from tests.fixtures.poisoned import Base, Sales, Sold, projection_of
from tests.fixtures.read_models import append_all
from tests.interleavings.designs.design import Tasks
from tests.interleavings.guards import statements_without, table_without
from tests.interleavings.till import LAPSE, STORE

pytestmark = pytest.mark.postgres

LEASES = (LeaseHeldError, LeaseLostError)
PROJECTIONS = Projections(STORE, clock=ManualClock())
PARKS = projection_of("park", messages=True)
MENDED = projection_of("park", mended=True, messages=True)
COUNTS = text(
    "SELECT (SELECT sum(parked) FROM datapatterns.projection_shard),"
    " (SELECT count(*) FROM datapatterns.projection_parked)"
)


@pytest.fixture(scope="module", autouse=True)
def _tables(plain: Engine) -> None:
    Base.metadata.create_all(plain)


# -- A retry beside a runner ----------------------------------------------------------------------


class Retrying:
    """Two events of a new product are parked, a third one is not projected yet."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self.product = ""

    def tasks(self) -> Tasks:
        self.settle()
        self.product = uuid4().hex
        self._append([self.product], [])
        PROJECTIONS.catch_up(self._plain, PARKS)
        self._append([])
        return {
            "runner": partial(PROJECTIONS.run, self._gated, PARKS),
            "retry": partial(PROJECTIONS.retry, self._gated, MENDED),
        }

    def _append(self, *bad: list[str]) -> None:
        append_all(self._plain, STORE, [Sold([self.product], 1, one) for one in bad])

    def settle(self) -> None:
        with self._plain.begin() as conn:
            conn.execute(LAPSE)
        PROJECTIONS.catch_up(self._plain, PARKS)
        PROJECTIONS.retry(self._plain, MENDED)

    def each_counts_once(self, _outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            counted, waiting = conn.execute(COUNTS).one()
        assert counted == waiting, f"{waiting} events wait, the segment says {counted}"
        self.settle()
        outbox = outbox_table(STORE.schema)
        with self._plain.begin() as conn:
            number = conn.scalar(select(Sales.number).where(Sales.product == self.product))
            mine = outbox.c.payload["product"].as_string() == self.product
            told = conn.scalars(
                select(outbox.c.payload["position"].as_integer()).where(mine).order_by(outbox.c.id)
            ).all()
        assert number == 3, f"3 were sold, {number} are counted"
        assert list(told) == sorted(set(told)), f"told in the order {told}"
        assert len(told) == 3, f"3 were sold, {len(told)} are told"


@pytest.fixture
def parked(gated: Engine, plain: Engine) -> Iterator[Retrying]:
    yield Retrying(gated, plain)
    with plain.begin() as conn:
        conn.execute(text("DELETE FROM datapatterns.projection_parked"))
        conn.execute(text("UPDATE datapatterns.projection_shard SET parked = 0"))
        conn.execute(delete(Sales))


def test_a_retry_beside_a_runner_applies_each_event_once_and_in_order(
    explorer: Explorer, parked: Retrying
) -> None:
    explored = explorer.explore(
        parked.tasks,
        invariant=parked.each_counts_once,
        max_preemptions=2 if THOROUGH else 1,
        allowed_errors=LEASES,
        max_schedules=at_most(20),
    )

    assert explored.schedules > 10


def test_a_retry_may_die_anywhere(explorer: Explorer, parked: Retrying) -> None:
    def alone() -> Tasks:
        return {"retry": parked.tasks()["retry"]}

    explored = explorer.explore(
        alone,
        invariant=parked.each_counts_once,
        crash_at=lambda _: True,
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
        allowed_errors=LEASES,
    )

    assert explored.exhausted


def test_without_a_lease_of_its_own_a_retry_and_a_runner_miscount(
    explorer: Explorer, plain: Engine, parked: Retrying, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_fencing(*args: Any, **options: Any) -> list[leasing.Lease]:  # noqa: ANN401
        conn, tables, _ = args
        shards = tables.shards
        epoch = conn.scalar(select(shards.c.epoch))
        leases = leasing.take_over(*args, **options)
        conn.execute(shards.update().values(epoch=epoch))
        return [replace(lease, epoch=epoch) for lease in leases]

    monkeypatch.setattr(retrying, "take_over", without_fencing)

    with (
        table_without(plain, "datapatterns.projection_shard", "ck_projection_shard_leased"),
        pytest.raises(InterleavingError, match="the segment says"),
    ):
        explorer.explore(
            parked.tasks,
            invariant=parked.each_counts_once,
            max_preemptions=2,
            allowed_errors=LEASES,
        )


# -- Relays ---------------------------------------------------------------------------------------


class Relaying:
    """Two messages of one row and one of another, and two relays."""

    def __init__(self, gated: Engine, plain: Engine) -> None:
        self._gated, self._plain = gated, plain
        self.published: list[tuple[str, int]] = []
        self._expected: set[tuple[str, int]] = set()

    def tasks(self) -> Tasks:
        with self._plain.begin() as conn:
            conn.execute(LAPSE)
        PROJECTIONS.catch_up(self._plain, PARKS)  # what another test has left
        with self._plain.begin() as conn:
            conn.execute(delete(outbox_table(STORE.schema)))
        one, other = uuid4().hex, uuid4().hex
        append_all(self._plain, STORE, [Sold([one], 1, []), Sold([one, other], 1, [])])
        PROJECTIONS.catch_up(self._plain, PARKS)
        self.published.clear()
        relay: Callable[[], Relayed] = partial(relay_messages, self._gated, self._publish)
        return {"first": relay, "second": relay}

    def _publish(self, message: Message) -> None:
        self.published.append((message.key, message.position))

    def in_order(self, _outcome: Outcome) -> None:
        relay_messages(self._plain, self._publish)
        first_times = list(dict.fromkeys(self.published))
        assert len(first_times) == 3, f"published were {self.published}"
        for key in {key for key, _ in first_times}:
            positions = [position for one, position in first_times if one == key]
            assert positions == sorted(positions), f"published were {self.published}"

    def once(self, outcome: Outcome) -> None:
        self.in_order(outcome)
        assert len(self.published) == 3, f"published twice: {self.published}"


@pytest.fixture
def relaying(gated: Engine, plain: Engine) -> Relaying:
    return Relaying(gated, plain)


def test_two_relays_publish_each_message_once(explorer: Explorer, relaying: Relaying) -> None:
    explored = explorer.explore(
        relaying.tasks, invariant=relaying.once, max_preemptions=2, max_schedules=at_most(40)
    )

    assert explored.schedules > 10


def test_of_two_relays_one_may_die_anywhere(explorer: Explorer, relaying: Relaying) -> None:
    explored = explorer.explore(
        relaying.tasks,
        invariant=relaying.in_order,
        max_preemptions=1,
        crash_at=lambda _: True,
        faults=[Fault.CRASH],
        max_schedules=at_most(40),
    )

    assert explored.schedules > 10


def test_without_locks_two_relays_publish_the_same(
    explorer: Explorer, gated: Engine, relaying: Relaying
) -> None:
    with (
        statements_without(gated, "pg_try_advisory_xact_lock", instead="1 = 1 OR 0 <>"),
        pytest.raises(InterleavingError, match="published twice"),
    ):
        explorer.explore(relaying.tasks, invariant=relaying.once, max_preemptions=2)
