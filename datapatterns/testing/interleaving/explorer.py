"""What users hold in their hands: connections that are gated, and searches over schedules."""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import redis
import redis.asyncio as redis_async
from psycopg.errors import DeadlockDetected
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from datapatterns.testing.interleaving.choosing import (
    BoundedSearch,
    Chooser,
    Fault,
    Gate,
    check_names,
    from_token,
    replaying,
    to_token,
)
from datapatterns.testing.interleaving.postgres_gates import GatedAsyncConnection, GatedConnection
from datapatterns.testing.interleaving.redis_gates import gated_async_client, gated_client
from datapatterns.testing.interleaving.results import Exploration, InterleavingError, Outcome
from datapatterns.testing.interleaving.scheduler import Scheduler
from datapatterns.testing.interleaving.servers import Servers
from datapatterns.testing.interleaving.tasks import State, Task, in_flight

Scenario = Callable[[], Mapping[str, Callable[[], Any]]]
"""Prepares one schedule, ungated, and returns its tasks by name: plain or ``async`` functions."""
Gated = TypeVar("Gated", GatedConnection, GatedAsyncConnection)
Invariant = Callable[[Outcome], Any]
"""Looks at what a schedule has left, ungated; raises AssertionError, or returns False, if wrong."""

MAX_SCHEDULES = 10_000
DEADLOCK_TIMEOUT_MILLISECONDS = 20


class Explorer:
    """Runs tasks on real servers in every order that matters, one round trip at a time.

    Args:
        database_url: The PostgreSQL database of the tasks, ``postgresql://...``.
        redis_url: Their Redis or Valkey, if any.
        max_steps: A schedule with more round trips than that is reported as a livelock.
        stuck_after_seconds: How long no task may move before the schedule is reported as stuck.
    """

    def __init__(
        self,
        database_url: str | URL | None = None,
        redis_url: str | None = None,
        *,
        max_steps: int = 1_000,
        stuck_after_seconds: float = 10.0,
    ) -> None:
        self._database_url = None if database_url is None else _driven(make_url(database_url))
        self._redis_url = redis_url
        self._max_steps, self._stuck_after_seconds = max_steps, stuck_after_seconds
        self._servers = Servers()
        self._engines: list[Engine] = []
        self._async_engines: list[AsyncEngine] = []
        self._clients: list[redis.Redis] = []
        self._async_clients: list[redis_async.Redis] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- connections for tasks -----------------------------------------------------------------

    def engine(self, database_url: str | URL | None = None, **options: Any) -> Engine:
        """Return an ordinary engine whose connections are gated; ``options`` go to SQLAlchemy."""
        engine = create_engine(self._address(database_url), **options)

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, args: Any, kwargs: Any) -> Any:
            with in_flight():
                return self._gate(GatedConnection.connect(*args, **kwargs), args, kwargs)

        engine.connect().close()  # the dialect asks its questions now, not in the first schedule
        self._engines.append(engine)
        return engine

    def async_engine(self, database_url: str | URL | None = None, **options: Any) -> AsyncEngine:
        """Return an ordinary async engine whose connections are gated."""
        engine = create_async_engine(self._address(database_url), **options)

        @event.listens_for(engine.sync_engine, "do_connect")
        def connect(_dialect: Any, _record: Any, _args: Any, kwargs: Any) -> None:
            async def gated(*args: Any, **kwargs: Any) -> GatedAsyncConnection:
                with in_flight():
                    connection = await GatedAsyncConnection.connect(*args, **kwargs)
                    return self._gate(connection, args, kwargs)

            kwargs["async_creator_fn"] = gated

        async def ask() -> None:
            async with engine.connect():
                pass

        self._await(ask())
        self._async_engines.append(engine)
        return engine

    def connect(self, database_url: str | URL | None = None, **options: Any) -> GatedConnection:
        """Return an ordinary psycopg connection that is gated; ``options`` go to psycopg."""
        url = self._address(database_url).set(drivername="postgresql")
        address = url.render_as_string(hide_password=False)
        return self._gate(GatedConnection.connect(address, **options), (address,), options)

    def redis(self, **options: Any) -> redis.Redis:
        """Return an ordinary redis-py client whose connections are gated."""
        client = gated_client(self._redis_address(), **options)
        client.ping()
        self._clients.append(client)
        return client

    def async_redis(self, **options: Any) -> redis_async.Redis:
        """Return an ordinary asynchronous redis-py client whose connections are gated."""
        client = gated_async_client(self._redis_address(), **options)
        self._await(_ping(client))
        self._async_clients.append(client)
        return client

    # -- searches ------------------------------------------------------------------------------

    def explore(  # noqa: PLR0913 -- the bounds of a search, all by keyword
        self,
        scenario: Scenario,
        *,
        invariant: Invariant,
        max_preemptions: int = 2,
        crash_at: Callable[[Gate], bool] | None = None,
        faults: Collection[Fault] = tuple(Fault),
        max_faults: int = 1,
        allowed_errors: tuple[type[BaseException], ...] = (),
        max_schedules: int | None = None,
    ) -> Exploration:
        """Run all schedules within the bounds; those with the fewest switches first.

        Raises:
            InterleavingError: After a schedule the invariant does not hold, or a task has failed.
        """
        search = BoundedSearch(
            max_preemptions=max_preemptions,
            faults=tuple(faults) if crash_at else (),
            max_faults=max_faults,
            fault_at=crash_at or (lambda _: True),
        )
        began, blocked, deadlocks = time.monotonic(), 0, 0
        while search.found and search.explored < (max_schedules or MAX_SCHEDULES):
            outcome = self._checked(
                scenario, search.next_chooser(), invariant, allowed_errors, search.explored
            )
            blocked += outcome.story.blocked_steps
            deadlocks += sum(_is_deadlock(error) for error in outcome.errors.values())
        if search.found and max_schedules is None:
            raise RuntimeError("more schedules than the limit; bound it")
        return Exploration(
            search.explored, not search.found, blocked, deadlocks, time.monotonic() - began
        )

    def replay(
        self,
        token: str,
        scenario: Scenario,
        *,
        invariant: Invariant,
        allowed_errors: tuple[type[BaseException], ...] = (),
    ) -> Outcome:
        """Run the one schedule of a token."""
        return self._checked(scenario, replaying(from_token(token)), invariant, allowed_errors, 1)

    def run(self, scenario: Scenario, choose: Chooser) -> Outcome:
        """Run one schedule and return how it ended."""
        functions = scenario()
        check_names(functions)
        scheduler = Scheduler(
            self._servers,
            choose,
            loop=self._running_loop,
            max_steps=self._max_steps,
            stuck_after_seconds=self._stuck_after_seconds,
        )
        clean = False
        try:
            tasks = scheduler.run(functions)
            clean = not any(task.fault for task in tasks.values())
        finally:
            if not clean:
                self._forget_connections()
        return _outcome(tasks, scheduler)

    def close(self) -> None:
        """Close every connection that it has handed out, and its own."""
        self._forget_connections()
        self._servers.close()
        if self._loop is not None and self._loop_thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop.close()
            self._loop = None

    def _checked(
        self,
        scenario: Scenario,
        choose: Chooser,
        invariant: Invariant,
        allowed_errors: tuple[type[BaseException], ...],
        schedules: int,
    ) -> Outcome:
        outcome = self.run(scenario, choose)
        broken = _broken(outcome, invariant, allowed_errors)
        if broken is not None:
            raise InterleavingError(broken, outcome, schedules=schedules)
        return outcome

    def _gate(self, connection: Gated, args: Any, kwargs: Any) -> Gated:
        options = {name: value for name, value in kwargs.items() if name not in _OWN_OPTIONS}
        self._servers.watch(connection.info, *args, **options)
        connection.servers = self._servers
        if self._servers.has_quick_deadlocks(connection.info):
            # Beneath the connection: no transaction begins, and no gate is passed.
            setting = f"SET deadlock_timeout = {DEADLOCK_TIMEOUT_MILLISECONDS}"
            connection.pgconn.exec_(setting.encode())
        return connection

    def _address(self, given: str | URL | None) -> URL:
        if given is not None:
            return _driven(make_url(given))
        if self._database_url is None:
            raise ValueError("the explorer was given no database_url")
        return self._database_url

    def _redis_address(self) -> str:
        if self._redis_url is None:
            raise ValueError("the explorer was given no redis_url")
        return self._redis_url

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop_thread = threading.Thread(
                target=self._loop.run_forever, name="explorer's event loop", daemon=True
            )
            self._loop_thread.start()
        return self._loop

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._running_loop()).result()

    def _forget_connections(self) -> None:
        # A pool would hand the connections of the dead to the next schedule.
        for engine in self._engines:
            engine.dispose()
        for async_engine in self._async_engines:
            self._await(async_engine.dispose())
        for client in self._clients:
            client.connection_pool.disconnect()
        for async_client in self._async_clients:
            self._await(async_client.connection_pool.disconnect())


_OWN_OPTIONS = frozenset(
    {"autocommit", "row_factory", "cursor_factory", "prepare_threshold", "context"}
)


def _driven(url: URL) -> URL:
    if url.drivername not in {
        "postgresql",
        "postgres",
        "postgresql+psycopg",
        "postgresql+psycopg_async",
    }:
        raise ValueError(f"the explorer needs postgresql+psycopg, not {url.drivername}")
    return url.set(drivername="postgresql+psycopg")


async def _ping(client: redis_async.Redis) -> None:
    await client.ping()


def _outcome(tasks: Mapping[str, Task], scheduler: Scheduler) -> Outcome:
    return Outcome(
        results={name: task.result for name, task in tasks.items() if task.state is State.DONE},
        errors={name: task.error for name, task in tasks.items() if task.error is not None},
        faults={name: task.fault for name, task in tasks.items() if task.fault is not None},
        crashed=frozenset(name for name, task in tasks.items() if task.state is State.CRASHED),
        token=to_token(scheduler.choices),
        story=scheduler.story,
    )


def _broken(
    outcome: Outcome, invariant: Invariant, allowed_errors: tuple[type[BaseException], ...]
) -> str | None:
    for name, error in outcome.errors.items():
        # Whom a fault has befallen may fail; what it leaves behind may not be wrong.
        if name not in outcome.faults and not isinstance(error, allowed_errors):
            return f"{name} raised {type(error).__name__}: {error}"
    try:
        verdict = invariant(outcome)
    except AssertionError as error:
        return str(error) or "the invariant does not hold"
    return (
        f"{getattr(invariant, '__name__', 'the invariant')} is false" if verdict is False else None
    )


def _is_deadlock(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, DeadlockDetected):
            return True
        error = getattr(error, "orig", None) or error.__cause__
    return False
