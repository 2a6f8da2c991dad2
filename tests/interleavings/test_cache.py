"""Readers that fill a cache beside writers that invalidate it, and Redis that forgets."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis import Redis
from sqlalchemy.exc import OperationalError

from datapatterns.cache_aside import driver
from datapatterns.cache_aside import relaying as rounds
from datapatterns.cache_aside.driver import Driver
from datapatterns.errors import ServerUnavailableError
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.caches import name_of, rename
from tests.fixtures.effort import THOROUGH, at_most
from tests.interleavings.designs.design import Tasks
from tests.interleavings.processes import (
    POLICY,
    PREEMPTIONS,
    Processes,
    closes_nothing,
    without,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


# -- C1, C3: a fill that began before a write ------------------------------------------------------


def meeting(processes: Processes, *, evicted: str = "") -> Tasks:
    reader, writer = processes.begin()
    tasks: dict[str, Callable[[], object]] = {
        "reader": partial(processes.read, reader),
        "writer": partial(processes.write, writer),
    }
    if evicted:
        tasks["eviction"] = partial(processes.evict, evicted)
    return tasks


def test_what_was_read_before_a_write_is_not_stored_after_it(
    explorer: Explorer, processes: Processes
) -> None:
    explored = explorer.explore(
        partial(meeting, processes),
        invariant=processes.is_absent_or_equal,
        max_preemptions=PREEMPTIONS,
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


def test_a_fill_without_a_lease_stores_what_was_read_before_the_write(
    explorer: Explorer,
    processes: Processes,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = "redis.call('GET', KEYS[i + 1]) == ARGV[1]"
    without(monkeypatch, redis_client, "FILL", guard, instead="true")

    with pytest.raises(InterleavingError, match="cached is 'old', the row says 'new'"):
        explorer.explore(partial(meeting, processes), invariant=processes.is_absent_or_equal)


def test_nor_does_a_second_delete_help_a_fill_without_a_lease(
    explorer: Explorer,
    processes: Processes,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = "redis.call('GET', KEYS[i + 1]) == ARGV[1]"
    without(monkeypatch, redis_client, "FILL", guard, instead="true")
    monkeypatch.setattr(processes, "write", processes.write_and_delete_twice)

    with pytest.raises(InterleavingError, match="cached is 'old', the row says 'new'"):
        explorer.explore(partial(meeting, processes), invariant=processes.is_absent_or_equal)


@pytest.mark.parametrize("evicted", ["value", "lease", "writers", "fences"])
def test_redis_may_forget_any_of_it_at_any_moment(
    evicted: str, explorer: Explorer, processes: Processes
) -> None:
    explored = explorer.explore(
        partial(meeting, processes, evicted=evicted),
        invariant=processes.is_absent_or_equal,
        max_preemptions=PREEMPTIONS - 1,
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


# -- C1 with C7: a writer that dies before Redis is told -------------------------------------------


@closes_nothing
def test_a_writer_may_die_anywhere_and_the_relay_tells_redis(
    explorer: Explorer, processes: Processes
) -> None:
    explored = explorer.explore(
        partial(meeting, processes),
        invariant=processes.is_absent_or_equal_once_relayed,
        max_preemptions=PREEMPTIONS - 1,
        crash_at=lambda gate: gate.task == "writer",
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


@closes_nothing
def test_without_a_relay_a_writer_that_dies_leaves_its_old_value(
    explorer: Explorer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "invalidations_of", lambda *_args, **_names: [])

    with pytest.raises(InterleavingError, match="cached is 'old', the row says 'new'"):
        explorer.explore(
            partial(meeting, processes),
            invariant=processes.is_absent_or_equal_once_relayed,
            crash_at=lambda gate: gate.task == "writer",
            faults=[Fault.CRASH],
        )


def relaying(processes: Processes) -> Tasks:
    reader, relay = processes.begin()
    return {
        "relay": relay.relay,
        "writer": partial(processes.write_and_leave_the_rest_to_the_relay, relay),
        "reader": partial(processes.read, reader),
    }


@closes_nothing
def test_a_relay_may_die_anywhere_and_the_next_one_tells_redis(
    explorer: Explorer, processes: Processes
) -> None:
    explored = explorer.explore(
        partial(relaying, processes),
        invariant=processes.is_absent_or_equal_once_relayed,
        max_preemptions=PREEMPTIONS - 1,
        crash_at=lambda gate: gate.task == "relay",
        faults=[Fault.CRASH],
        max_schedules=at_most(15),
    )

    assert explored.schedules > 10


def test_redis_may_leave_a_relay_anywhere_and_the_next_one_tells_it(
    explorer: Explorer, processes: Processes
) -> None:
    def written() -> Tasks:
        _, relay = processes.begin()
        with processes.plain.begin() as conn:
            rename(conn, 1, "new")
            processes.observer.invalidate_in(conn, 1)
        return {"relay": relay.relay}

    explored = explorer.explore(
        written,
        invariant=processes.is_absent_or_equal_once_relayed,
        crash_at=lambda gate: gate.label.startswith("redis"),
        faults=[Fault.REPLY_LOST],
        allowed_errors=(ServerUnavailableError,),
    )

    assert explored.exhausted


# -- C8: one load for many misses ------------------------------------------------------------------


@pytest.fixture
def patient(
    explorer: Explorer, start: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> Processes:
    """Caches that wait for each other, by a clock that nobody has to wait for."""
    monkeypatch.setattr(driver, "sleep", explorer.clock.sleep)
    return start(policy=replace(POLICY, wait_seconds=600))


def missing(processes: Processes) -> Tasks:
    one, two = processes.begin()
    return {"one": partial(processes.read, one), "two": partial(processes.read, two)}


def one_has_loaded(processes: Processes, outcome: Outcome) -> None:
    assert set(outcome.results.values()) == {"old"}
    assert processes.loads == 1, f"{processes.loads} processes have loaded one value"


def test_of_two_processes_that_miss_one_value_one_loads_it(
    explorer: Explorer, patient: Processes
) -> None:
    explored = explorer.explore(
        partial(missing, patient),
        invariant=partial(one_has_loaded, patient),
        max_preemptions=PREEMPTIONS,
    )

    assert explored.exhausted


def test_a_lease_that_two_can_take_lets_both_load(
    explorer: Explorer,
    patient: Processes,
    redis_client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, redis_client, "ACQUIRE", "ARGV[2], 'NX')", instead="ARGV[2])")

    with pytest.raises(InterleavingError, match="2 processes have loaded"):
        explorer.explore(partial(missing, patient), invariant=partial(one_has_loaded, patient))


# -- C6, C13: snapshots that are older than the lease, or were never committed ---------------------


def reading_in_a_transaction(processes: Processes) -> Tasks:
    """Somebody has a snapshot, changes a name, looks it up through the cache and gives up."""
    cache, writer = processes.begin()

    def hesitate() -> None:
        with processes.snapshot() as conn:
            name_of(conn, 1)
            processes.read(cache)
            rename(conn, 1, "never was")
            processes.read(cache)
            conn.rollback()

    return {"hesitant": hesitate, "writer": partial(processes.write, writer)}


def test_nothing_is_stored_from_a_callers_snapshot_or_from_what_is_rolled_back(
    explorer: Explorer, processes: Processes
) -> None:
    explored = explorer.explore(
        partial(reading_in_a_transaction, processes),
        invariant=processes.is_absent_or_equal,
        max_preemptions=PREEMPTIONS - 1,
        allowed_errors=(OperationalError,),
    )

    assert explored.exhausted


def test_a_load_on_the_callers_connection_would_store_its_snapshot(
    explorer: Explorer, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_now(self: Driver, reading: Any, step: Any) -> Any:  # noqa: ANN401 -- as there
        if self is processes.observer._driver:  # noqa: SLF001 -- whose load is whose
            return original(self, reading, step)
        values = reading.load(processes.callers, step.places)
        return self._backing.packed(reading, values, step, seconds=0, is_current=True)

    original = Driver._load_now  # noqa: SLF001 -- the guard
    monkeypatch.setattr(Driver, "_load_now", load_now)
    with pytest.raises(InterleavingError, match="cached is"):
        explorer.explore(
            partial(reading_in_a_transaction, processes),
            invariant=processes.is_absent_or_equal,
            allowed_errors=(OperationalError,),
        )
