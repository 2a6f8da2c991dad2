"""Writers that commit only behind a fence beside readers: what has committed is what is served."""

from collections.abc import Callable
from functools import partial

import pytest
from redis import Redis
from sqlalchemy import text

from datapatterns.cache_aside import Cache
from datapatterns.failpoints import armed
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.caches import rename
from tests.fixtures.effort import THOROUGH
from tests.interleavings.designs.design import Tasks
from tests.interleavings.processes import Processes, closes_nothing, explore, without

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

BEHIND = "was served 'old' though 'new' had committed"


class Witness:
    """Looks at the row, then reads through the cache: that must not be older."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def read(self, cache: Cache) -> tuple[str | None, str | None]:
        return self._processes.committed(), self._processes.read(cache)

    def is_served_what_had_committed(self, outcome: Outcome) -> None:
        committed, served = outcome.results["reader"]
        assert served == committed or (committed, served) == ("old", "new"), (
            f"was served {served!r} though {committed!r} had committed"
        )


@pytest.fixture
def strict(start: Callable[..., Processes]) -> Processes:
    return start(strict=True)


@pytest.fixture
def strict_by_tag(start: Callable[..., Processes]) -> Processes:
    return start(strict=True, tags=["shelf"])


def meeting(processes: Processes, *, evicted: str = "") -> Tasks:
    reader, writer = processes.begin()
    processes.read(processes.observer)  # which stores the old value
    witness = Witness(processes)
    tasks: dict[str, Callable[[], object]] = {
        "reader": partial(witness.read, reader),
        "writer": partial(processes.write, writer),
    }
    if evicted:
        tasks["eviction"] = partial(processes.evict, evicted)
    return tasks


def is_right(processes: Processes, outcome: Outcome) -> None:
    Witness(processes).is_served_what_had_committed(outcome)
    processes.is_absent_or_equal_once_relayed(outcome)


@pytest.mark.parametrize("fixture", ["strict", "strict_by_tag"])
def test_once_a_strict_write_has_committed_nobody_is_served_what_was_there(
    fixture: str, explorer: Explorer, request: pytest.FixtureRequest
) -> None:
    processes: Processes = request.getfixturevalue(fixture)
    with armed("cache.write-fenced", lambda: processes.read(processes.observer), visit=None):
        explore(
            explorer,
            partial(meeting, processes),
            invariant=partial(is_right, processes),
        )


@pytest.mark.parametrize("tags", [[], ["shelf"]], ids=["entry", "tag"])
def test_without_strictness_somebody_is_until_it_is_forgotten(
    tags: list[str], explorer: Explorer, start: Callable[..., Processes]
) -> None:
    processes = start(tags=tags)

    with pytest.raises(InterleavingError, match=BEHIND):
        explorer.explore(partial(meeting, processes), invariant=partial(is_right, processes))


def test_a_fence_that_lets_others_store_lets_them_be_served_what_was_there(
    explorer: Explorer, strict: Processes, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = "redis.call('ZCARD', KEYS[i + 3]) > 0"
    without(monkeypatch, redis_client, "ACQUIRE", guard, instead="false")
    fills = " and redis.call('ZCARD', KEYS[i + 2]) == 0"
    without(monkeypatch, redis_client, "FILL", fills, instead="")

    with (
        armed("cache.write-fenced", lambda: strict.read(strict.observer), visit=None),
        pytest.raises(InterleavingError, match=BEHIND),
    ):
        explorer.explore(partial(meeting, strict), invariant=partial(is_right, strict))


@closes_nothing
def test_a_strict_writer_may_die_anywhere(explorer: Explorer, strict: Processes) -> None:
    explore(
        explorer,
        partial(meeting, strict),
        invariant=partial(is_right, strict),
        preemptions=1,
        crash_at=lambda gate: gate.task == "writer",
        faults=list(Fault) if THOROUGH else [Fault.CRASH],
        schedules=25,
    )


@pytest.mark.parametrize("evicted", ["value", "lease", "writers"])
def test_redis_may_forget_what_is_no_fence(
    evicted: str, explorer: Explorer, strict: Processes
) -> None:
    explore(
        explorer,
        partial(meeting, strict, evicted=evicted),
        invariant=partial(is_right, strict),
        preemptions=1,
    )


def test_a_fence_that_is_lost_costs_its_promise_and_nothing_else(
    explorer: Explorer, strict: Processes
) -> None:
    explore(
        explorer,
        partial(meeting, strict, evicted="fences"),
        invariant=strict.is_absent_or_equal_once_relayed,
        preemptions=1,
    )


def two_writers(processes: Processes) -> Tasks:
    reader, writer = processes.begin()
    witness = Witness(processes)

    def write_another_row() -> None:
        with writer.writes() as conn:
            conn.execute(text("SELECT pg_current_xact_id()"))
            writer.invalidate_in(conn, 1)

    def write() -> None:
        with reader.writes() as conn:
            rename(conn, 1, "new")
            reader.invalidate_in(conn, 1)

    return {
        "writer": write,
        "another": write_another_row,
        "reader": partial(witness.read, processes.observer),
    }


def test_the_fence_of_one_writer_stands_when_that_of_another_falls(
    explorer: Explorer, strict: Processes
) -> None:
    explore(
        explorer,
        partial(two_writers, strict),
        invariant=partial(is_right, strict),
        schedules=20,
    )
