"""Processes with caches that meet on one row, one round trip at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from datapatterns.cache_aside import Cache, CachePolicy, redis_commands
from datapatterns.cache_aside.lua_scripts import SCRIPTS, Script
from datapatterns.cache_aside.lua_scripts import _script as script
from datapatterns.testing.interleaving import Explorer, Outcome
from tests.fixtures.caches import name_of, rename
from tests.fixtures.effort import THOROUGH
from tests.interleavings.designs.design import Tasks

PREEMPTIONS = 3 if THOROUGH else 2
# Nothing depends on the time that a busy machine takes: who waits, looks twice and goes on.
POLICY = CachePolicy(
    jitter=0,
    early_refresh=0,
    redis_timeout_seconds=10,
    wait_seconds=0.004,
    lease_seconds=600,
    vouched_seconds=3_600,
)

closes_nothing = pytest.mark.filterwarnings(
    "ignore:.*ServerCursor.*was deleted while still open:ResourceWarning"
)
"""A process that dies in the middle of a result leaves it open."""

EVICT = """
local keys = redis.call('KEYS', ARGV[1])
for _, key in ipairs(keys) do redis.call('DEL', key) end
redis.call('INCRBY', 'evicted', #keys)
return #keys
"""
"""The server's own count of evicted keys cannot be raised; see `counted_here`."""


class Processes:
    """Caches, one for each task: tasks are processes of their own."""

    def __init__(
        self,
        gated: Engine,
        plain: Engine,
        gated_redis: Redis,
        redis_url: str,
        *,
        tags: Sequence[str] = (),
        **options: Any,  # noqa: ANN401 -- as `Cache` takes them
    ) -> None:
        self._options, self.loads, self._tags = {"policy": POLICY} | options, 0, tags
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

    @property
    def filled(self) -> int:
        """How many values the processes have stored."""
        return sum(cache.stats().filled for cache in self._caches)

    def begin(self) -> tuple[Cache, Cache]:
        """Begin a schedule with nothing cached; return the caches of two processes."""
        self._redis.eval(EVICT, 0, "*:{*")
        with self.plain.begin() as conn:
            conn.execute(text("UPDATE product SET name = 'old'"))
            conn.execute(text("DELETE FROM datapatterns.cache_outbox"))
        self.observer.relay()  # which leaves a milestone
        while len(self._caches) < 2:
            self._caches.append(self._started(self._gated_redis, self._gated))
        self.loads = 0
        first, second = self._caches
        return first, second

    def _started(self, redis: Redis, engine: Engine) -> Cache:
        """Return the cache of a process which knows that Redis is up to date."""
        cache = Cache(redis, engine, name="product", **self._options)
        self._open.enter_context(closing(cache))
        cache.get_or_load("something else", lambda _: "")
        # It knows, too, as what its own connections read.
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
            cache.get_or_load(uuid4(), lambda own: str(name_of(own, 1)), within=conn)
        return cache

    def read(self, cache: Cache, within: Connection | None = None) -> str | None:
        return cache.get_or_load(1, self._load, tags=self._tags, within=within)

    def committed(self) -> str | None:
        """Look at the row, as a task."""
        with self._gated.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            return name_of(conn, 1)

    def read_in(self, level: str, cache: Cache) -> str | None:
        """Read through the cache in a transaction that has a snapshot already."""
        with self._gated.connect().execution_options(isolation_level=level) as conn:
            conn.execute(text("SELECT 1"))
            return self.read(cache, conn)

    def _load(self, conn: Connection) -> str | None:
        self.loads += 1
        return name_of(conn, 1)

    def write(self, cache: Cache, name: str = "new") -> None:
        with cache.writes() as conn:
            rename(conn, 1, name)
            self._name_it(cache, conn)

    def write_late(self, cache: Cache) -> None:
        """Draw an id, let another write and commit, then write and commit."""
        with cache.writes() as conn:
            conn.execute(text("SELECT pg_current_xact_id()"))
            self.write(self.observer, "new")
            rename(conn, 1, "newer")
            self._name_it(cache, conn)

    def write_after_a_savepoint(self, cache: Cache) -> None:
        """Write, take that back, and write something else."""
        with cache.writes() as conn:
            with conn.begin_nested() as savepoint:
                rename(conn, 1, "never was")
                self._name_it(cache, conn)
                savepoint.rollback()
            rename(conn, 1, "new")
            self._name_it(cache, conn)

    def write_and_delete_twice(self, cache: Cache) -> None:
        """Write, and delete once more a little later, as is often advised."""
        Processes.write(self, cache)
        self._gated_redis.eval(EVICT, 0, "*:value:*")

    def _name_it(self, cache: Cache, conn: Connection) -> None:
        if self._tags:
            cache.invalidate_in(conn, tags=self._tags)
        else:
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
        self._gated_redis.eval(EVICT, 0, f"*:{what}*")

    def flush(self) -> None:
        """Do what an operator may do at any moment."""
        self._gated_redis.flushdb()

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


def explore(
    explorer: Explorer,
    scenario: Callable[[], Tasks],
    invariant: Callable[[Outcome], None],
    *,
    preemptions: int = 2,
    schedules: int = 15,
    **options: Any,  # noqa: ANN401 -- as the explorer takes them
) -> None:
    """Explore a little each day, and by torture whatever three preemptions can lead to."""
    explored = explorer.explore(
        scenario,
        invariant=invariant,
        max_preemptions=3 if THOROUGH else preemptions,
        max_schedules=None if THOROUGH else schedules,
        **options,
    )
    assert explored.exhausted if THOROUGH else explored.schedules > 5


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
