"""What users hold in their hands: connections that are gated, and searches over schedules."""

# ruff: noqa: ANN401 -- options of SQLAlchemy, psycopg and redis-py

import inspect
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import redis
import redis.asyncio as redis_async
from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from datapatterns.errors import SearchTooLargeError
from datapatterns.testing.interleaving.bounding import BoundedSearch
from datapatterns.testing.interleaving.choosing import Chooser, Fault, Gate, Plan, replaying
from datapatterns.testing.interleaving.connections import Connections, driven
from datapatterns.testing.interleaving.judging import check_tasks, judge
from datapatterns.testing.interleaving.loop import LoopThread
from datapatterns.testing.interleaving.postgres_gates import GatedConnection
from datapatterns.testing.interleaving.results import Exploration, Outcome
from datapatterns.testing.interleaving.scheduler import Scheduler
from datapatterns.testing.interleaving.stage import Stage
from datapatterns.testing.interleaving.tally import Tally
from datapatterns.testing.interleaving.tasks import State, Task
from datapatterns.testing.interleaving.tokens import check_names, from_token, to_token
from datapatterns.testing.interleaving.virtual_time import VirtualClock

Tasks = Mapping[str, Callable[[], Any]]
"""What runs at the same time, by name: plain functions, and ``async`` ones."""

Scenario = Callable[[], Tasks | Coroutine[Any, Any, Tasks]]
"""Prepares one schedule, ungated, and returns its tasks."""

Invariant = Callable[[Outcome], Any]
"""Looks at what a schedule has left, ungated; raises AssertionError or returns False if wrong."""

AllowedErrors = type[BaseException] | Collection[type[BaseException]]
"""What tasks may raise."""

SCHEDULES_MAX = 10_000


class Explorer:
    """Runs tasks on real servers in every order that matters, one round trip at a time.

    A scenario and an invariant may be ``async`` functions, too. A search blocks its thread until
    it is done; in a coroutine write ``await asyncio.to_thread(explorer.explore, ...)``.

    Args:
        database_url: The PostgreSQL database of the tasks, ``postgresql://...``.
        redis_url: Their Redis or Valkey, if any.
        max_steps: A schedule with more round trips than that is reported as a livelock.
        stuck_after_seconds: How long no task may move before the schedule is reported as stuck.
        start_gate: What a task does before its first round trip is scheduled, too.
        replay: Searches run this token's schedule alone, or none if it is of other tasks.
        preemptions: Takes the place of every ``max_preemptions``.
        examples: Takes the place of every ``examples``.
        report: Called with what each search has run, also when it fails.

    Attributes:
        clock: Time for tasks; whoever sleeps by it lets others go first, and nobody waits.
    """

    def __init__(  # noqa: PLR0913 -- limits and what a test run overrides, all by keyword
        self,
        database_url: str | URL | None = None,
        redis_url: str | None = None,
        *,
        max_steps: int = 1_000,
        stuck_after_seconds: float = 10.0,
        start_gate: bool = False,
        replay: str | None = None,
        preemptions: int | None = None,
        examples: int | None = None,
        report: Callable[[Exploration], object] | None = None,
    ) -> None:
        self._database_url = None if database_url is None else driven(database_url)
        self._redis_url = redis_url
        self._max_steps, self._stuck_after_seconds = max_steps, stuck_after_seconds
        self._start_gate = start_gate
        self._replay = None if replay is None else from_token(replay)
        self._preemptions, self._examples = preemptions, examples
        self._report = report or (lambda _: None)
        self._running = threading.Lock()
        self._stage, self._loop = Stage(), LoopThread()
        self._connections = Connections(self._stage, self._loop)
        self.clock = VirtualClock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection that it has handed out, and its own."""
        self._connections.close()
        self._loop.close()

    # -- connections for tasks -----------------------------------------------------------------

    def engine(self, database_url: str | URL | None = None, **options: Any) -> Engine:
        """Return an ordinary engine whose connections are gated; ``options`` go to SQLAlchemy."""
        return self._connections.engine(self._address(database_url), **options)

    def async_engine(self, database_url: str | URL | None = None, **options: Any) -> AsyncEngine:
        """Return an ordinary async engine whose connections are gated; only for tasks."""
        return self._connections.async_engine(self._address(database_url), **options)

    def connect(self, database_url: str | URL | None = None, **options: Any) -> GatedConnection:
        """Return an ordinary psycopg connection that is gated; ``options`` go to psycopg.

        One that a task opens, is closed when the task ends.
        """
        return self._connections.connect(self._address(database_url), **options)

    def redis(self, redis_url: str | None = None, **options: Any) -> redis.Redis:
        """Return an ordinary redis-py client whose connections are gated."""
        return self._connections.redis(self._redis_address(redis_url), **options)

    def async_redis(self, redis_url: str | None = None, **options: Any) -> redis_async.Redis:
        """Return an ordinary asynchronous client whose connections are gated; only for tasks."""
        return self._connections.async_redis(self._redis_address(redis_url), **options)

    def _address(self, given: str | URL | None) -> URL:
        if given is not None:
            return driven(given)
        if self._database_url is None:
            raise ValueError("the explorer was given no database_url")
        return self._database_url

    def _redis_address(self, given: str | None) -> str:
        if given is None and self._redis_url is None:
            raise ValueError("the explorer was given no redis_url")
        return given or self._redis_url or ""

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
        allowed_errors: AllowedErrors = (),
        max_schedules: int | None = None,
    ) -> Exploration:
        """Run all schedules within the bounds; those with the fewest switches first.

        Args:
            scenario: Prepares a schedule and returns its tasks.
            invariant: What must hold after each.
            max_preemptions: How often a task may be left that could go on.
            crash_at: At which gates a fault may happen; unless given, at none.
            faults: Which faults.
            max_faults: How many of them in one schedule.
            allowed_errors: What tasks may raise, beside those whom a fault befalls.
            max_schedules: Stop after so many; unless given, 10,000 are too many.

        Raises:
            InterleavingError: After a schedule the invariant does not hold, or a task has failed.
            StuckError: The tasks of a schedule do not end.
            DivergedError: They do not do the same each time.
            SearchTooLargeError: There are more than 10,000 schedules within the bounds.
        """
        if max_schedules is not None and max_schedules < 1:
            raise ValueError(f"max_schedules={max_schedules} would explore nothing")
        __tracebackhide__ = True
        search = BoundedSearch(
            max_preemptions=max_preemptions if self._preemptions is None else self._preemptions,
            faults=[Fault(each) for each in faults] if crash_at else (),
            max_faults=max_faults,
            fault_at=crash_at or (lambda _: True),
        )

        def attempt(choose: Chooser) -> None:
            __tracebackhide__ = True
            self._checked(scenario, choose, invariant, allowed_errors, tally)

        with self._tally() as tally:
            if self._replay is not None:
                return self._replayed(scenario, invariant, allowed_errors, tally)
            while search.found and search.explored < (max_schedules or SCHEDULES_MAX):
                search.run_next(attempt)
            if search.found and max_schedules is None:
                raise SearchTooLargeError(explored=search.explored, known=search.found)
            tally.exhausted = not search.found
        return tally.exploration()

    def search(  # noqa: PLR0913 -- the bounds of a search, all by keyword
        self,
        scenario: Scenario,
        *,
        invariant: Invariant,
        examples: int = 100,
        seed: int | None = None,
        crash_at: Callable[[Gate], bool] | None = None,
        faults: Collection[Fault] = tuple(Fault),
        allowed_errors: AllowedErrors = (),
    ) -> Exploration:
        """Run schedules that Hypothesis draws, and shrink one that fails to the fewest switches.

        For scenarios with too many schedules for `explore`.

        Args:
            scenario: Prepares a schedule and returns its tasks.
            invariant: What must hold after each.
            examples: How many schedules are drawn; the first one makes no preemption.
            seed: Other schedules for each number; unless given, the same ones every time.
            crash_at: At which gates a fault may happen; unless given, at none.
            faults: Which faults, at most one in a schedule.
            allowed_errors: What tasks may raise, beside those whom a fault befalls.

        Raises:
            InterleavingError: After a schedule the invariant does not hold, or a task has failed.
            StuckError: The tasks of a schedule do not end.
        """
        __tracebackhide__ = True
        # Not above: who only explores, needs no Hypothesis.
        from datapatterns.testing.interleaving.schedules import (  # noqa: PLC0415
            Schedule,
            first_failing,
            schedules,
        )

        def attempt(schedule: Schedule) -> Outcome:
            __tracebackhide__ = True
            return self._checked(scenario, schedule, invariant, allowed_errors, tally)

        with self._tally() as tally:
            if self._replay is not None:
                return self._replayed(scenario, invariant, allowed_errors, tally)
            first = attempt(Schedule())
            steps = len(from_token(first.token))
            found = first_failing(
                attempt,
                schedules(
                    steps=steps + steps // 4 + 1,
                    tasks=len(first.story.tasks),
                    crash_at=crash_at,
                    faults=faults,
                ),
                examples=examples if self._examples is None else self._examples,
                with_seed=seed,
            )
            if found is not None:
                raise found from None
        return tally.exploration()

    def replay(
        self,
        token: str,
        scenario: Scenario,
        *,
        invariant: Invariant,
        allowed_errors: AllowedErrors = (),
    ) -> Outcome:
        """Run the one schedule of a token.

        Raises:
            InterleavingError: It fails again.
            DivergedError: The code does not do what it did when the token was printed.
            ValueError: It is no token.
        """
        __tracebackhide__ = True
        return self._checked(
            scenario, replaying(from_token(token)), invariant, allowed_errors, Tally()
        )

    def check(
        self,
        schedule: Chooser | Plan,
        scenario: Scenario,
        *,
        invariant: Invariant,
        allowed_errors: AllowedErrors = (),
    ) -> Outcome:
        """Run one schedule, of `schedules` or of a chooser's making, and check the invariant.

        Raises:
            InterleavingError: It does not hold, or a task has failed.
        """
        __tracebackhide__ = True
        return self._checked(scenario, schedule, invariant, allowed_errors, Tally())

    def run(self, scenario: Scenario, schedule: Chooser | Plan) -> Outcome:
        """Run one schedule and return how it ended.

        Args:
            scenario: Prepares it and returns its tasks.
            schedule: A value of `schedules`, or what decides at each step which gate is opened.
        """
        __tracebackhide__ = True
        if not self._running.acquire(blocking=False):
            raise RuntimeError(
                "this explorer runs a schedule already; a task, a scenario or another thread that "
                "explores needs an explorer of its own"
            )
        try:
            return self._run(scenario, schedule)
        finally:
            self._running.release()

    def _run(self, scenario: Scenario, schedule: Chooser | Plan) -> Outcome:
        __tracebackhide__ = True
        choose = schedule if callable(schedule) else schedule.chooser()
        self.clock.restart()
        self._connections.begin()
        functions: Tasks = self._called(scenario)
        check_tasks(functions)
        check_names(functions)
        scheduler = Scheduler(
            self._stage,
            choose,
            loop=self._loop,
            max_steps=self._max_steps,
            stuck_after_seconds=self._stuck_after_seconds,
            start_gate=self._start_gate,
        )
        try:
            tasks = scheduler.run(functions)
        finally:
            self._connections.tidy(scheduler.tasks)
        return _outcome(tasks, scheduler)

    @contextmanager
    def _tally(self) -> Iterator[Tally]:
        tally = Tally()
        try:
            yield tally
        finally:
            self._report(tally.exploration())

    def _replayed(
        self,
        scenario: Scenario,
        invariant: Invariant,
        allowed_errors: AllowedErrors,
        tally: Tally,
    ) -> Exploration:
        __tracebackhide__ = True
        choices = self._replay or []
        # A run of many tests replays one of them: the token's tasks tell which.
        if {choice.task for choice in choices} <= set(self._called(scenario)):
            self._checked(scenario, replaying(choices), invariant, allowed_errors, tally)
        return tally.exploration()

    def _checked(
        self,
        scenario: Scenario,
        schedule: Chooser | Plan,
        invariant: Invariant,
        allowed_errors: AllowedErrors,
        tally: Tally,
    ) -> Outcome:
        __tracebackhide__ = True
        kinds = allowed_errors if isinstance(allowed_errors, type) else tuple(allowed_errors)
        outcome = self.run(scenario, schedule)
        tally.add(outcome)
        judge(
            outcome,
            lambda outcome: self._called(invariant, outcome),
            name=getattr(invariant, "__name__", "the invariant"),
            allowed_errors=kinds,
            schedules=tally.schedules,
        )
        return outcome

    def _called(self, function: Callable[..., Any], *args: Any) -> Any:
        __tracebackhide__ = True
        made = function(*args)
        return self._loop.wait_for(made) if inspect.iscoroutine(made) else made


def _outcome(tasks: Mapping[str, Task], scheduler: Scheduler) -> Outcome:
    return Outcome(
        results={name: task.result for name, task in tasks.items() if task.state is State.DONE},
        errors={name: task.error for name, task in tasks.items() if task.error is not None},
        faults={name: task.fault for name, task in tasks.items() if task.fault is not None},
        crashed=frozenset(name for name, task in tasks.items() if task.state is State.CRASHED),
        token=to_token(scheduler.choices),
        story=scheduler.story,
    )
