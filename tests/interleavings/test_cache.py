"""Readers that fill a cache beside writers that invalidate it, and Redis that forgets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.cache_aside import Cache, CachePolicy, driver, gate, redis_commands
from datapatterns.cache_aside import relaying as rounds
from datapatterns.cache_aside.driver import Driver
from datapatterns.cache_aside.redis_commands import SCRIPTS, Script
from datapatterns.cache_aside.redis_commands import _script as script
from datapatterns.errors import ServerUnavailableError
from datapatterns.testing.interleaving import Explorer, Fault, InterleavingError, Outcome
from tests.fixtures.caches import create_products, name_of, rename
from tests.fixtures.effort import THOROUGH, at_most
from tests.interleavings.designs.design import Tasks

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

PREEMPTIONS = 3 if THOROUGH else 2
# Nothing depends on the time that a busy machine takes: who waits, looks twice and goes on.
POLICY = CachePolicy(
    jitter=0,
    early_refresh=0,
    redis_timeout_seconds=10,
    wait_seconds=0.004,
    lease_seconds=600,
    vouched_seconds=3_600,
    writers_seconds=600,
)

closes_nothing = pytest.mark.filterwarnings(
    "ignore:.*ServerCursor.*was deleted while still open:ResourceWarning"
)
"""A process that dies in the middle of a result leaves it open."""

EVICT = """
local keys = redis.call('KEYS', ARGV[1])
for _, key in ipairs(keys) do redis.call('DEL', key) end
return #keys
"""


@pytest.fixture(scope="module", autouse=True)
def _products(plain: Engine) -> None:
    create_products(plain, count=1)


@pytest.fixture(autouse=True)
def _vouched_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody look once more in the middle of a schedule, because a second has passed."""
    monkeypatch.setattr(gate, "CHECK_SECONDS", 3_600.0)


@pytest.fixture(scope="module")
def gated_redis(explorer: Explorer) -> Redis:
    return explorer.redis()


class Processes:
    """Caches, one for each task: tasks are processes of their own."""

    def __init__(
        self,
        gated: Engine,
        plain: Engine,
        gated_redis: Redis,
        redis_url: str,
        policy: CachePolicy = POLICY,
    ) -> None:
        self._policy, self.loads = policy, 0
        self._gated, self.plain, self._gated_redis = gated, plain, gated_redis
        self._redis = Redis.from_url(redis_url)
        for known in SCRIPTS.values():
            self._redis.script_load(known.source)
        self._open = ExitStack()
        self._caches: list[Cache] = []
        self.observer = self._started(self._redis, plain)
        self.callers: Connection | None = None

    def close(self) -> None:
        self._open.close()
        self._redis.close()

    def begin(self) -> tuple[Cache, Cache]:
        """Begin a schedule with nothing cached; return the caches of two processes."""
        self._redis.eval(EVICT, 0, "*:{*")
        with self.plain.begin() as conn:
            conn.execute(text("UPDATE product SET name = 'old'"))
            conn.execute(text("DELETE FROM datapatterns.cache_outbox"))
        while len(self._caches) < 2:
            self._caches.append(self._started(self._gated_redis, self._gated))
        self.loads = 0
        first, second = self._caches
        return first, second

    def _started(self, redis: Redis, engine: Engine) -> Cache:
        """Return the cache of a process which knows that Redis is up to date."""
        cache = Cache(redis, engine, name="product", policy=self._policy)
        self._open.enter_context(closing(cache))
        cache.get_or_load("something else", lambda _: "")
        return cache

    def read(self, cache: Cache) -> str | None:
        return cache.get_or_load(1, self._load)

    def _load(self, conn: Connection) -> str | None:
        self.loads += 1
        return name_of(conn, 1)

    def write(self, cache: Cache, name: str = "new") -> None:
        with cache.writes() as conn:
            rename(conn, 1, name)
            cache.invalidate_in(conn, 1)

    def write_and_leave_the_rest_to_the_relay(self, cache: Cache) -> None:
        with self._gated.begin() as conn:
            rename(conn, 1, "new")
            cache.invalidate_in(conn, 1)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Begin a transaction of a caller's that sees what it saw at first."""
        with self._gated.connect() as conn:
            self.callers = conn.execution_options(isolation_level="REPEATABLE READ")
            yield conn

    def evict(self, what: str) -> None:
        """Do what Redis may do at any moment, to every key that is called so."""
        self._gated_redis.eval(EVICT, 0, f"*:{what}:*")

    def is_absent_or_equal(self, outcome: Outcome) -> None:
        if outcome.faults:  # the processes that it befell are not used again
            self._caches.clear()
        cached = self.read(self.observer)
        with self.plain.begin() as conn:
            stored = name_of(conn, 1)
        assert cached == stored, f"cached is {cached!r}, the row says {stored!r}"

    def is_absent_or_equal_once_relayed(self, outcome: Outcome) -> None:
        self.observer.relay()
        self.is_absent_or_equal(outcome)


@pytest.fixture
def processes(
    gated: Engine, plain: Engine, gated_redis: Redis, redis_url: str
) -> Iterator[Processes]:
    with closing(Processes(gated, plain, gated_redis, redis_url)) as processes:
        yield processes


def without(
    monkeypatch: pytest.MonkeyPatch, redis_client: Redis, name: str, guard: str, *, instead: str
) -> None:
    """Take a guard out of a script."""
    original: Script = getattr(redis_commands, name)
    assert original.source.count(guard) == 1
    changed = script(original.source.replace(guard, instead))
    monkeypatch.setattr(redis_commands, name, changed)
    monkeypatch.setitem(SCRIPTS, changed.sha, changed)
    redis_client.script_load(changed.source)


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
    explorer: Explorer,
    gated: Engine,
    plain: Engine,
    gated_redis: Redis,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Processes]:
    """Caches that wait for each other, by a clock that nobody has to wait for."""
    monkeypatch.setattr(driver, "sleep", explorer.clock.sleep)
    policy = replace(POLICY, wait_seconds=600)
    with closing(Processes(gated, plain, gated_redis, redis_url, policy)) as processes:
        yield processes


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
        return self._backing.packed(reading.codec, values, step, seconds=0, is_standby=False)

    original = Driver._load_now  # noqa: SLF001 -- the guard
    monkeypatch.setattr(Driver, "_load_now", load_now)
    with pytest.raises(InterleavingError, match="cached is"):
        explorer.explore(
            partial(reading_in_a_transaction, processes),
            invariant=processes.is_absent_or_equal,
            allowed_errors=(OperationalError,),
        )
