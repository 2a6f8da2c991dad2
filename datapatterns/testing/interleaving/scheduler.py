"""One schedule: one task moves at a time; all others are parked, blocked, waiting or done."""

# ruff: noqa: ANN401 -- what the functions of users return

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any, NoReturn

from datapatterns.testing.interleaving.choosing import (
    Choice,
    Chooser,
    Gate,
    Replaying,
    UnreadyError,
)
from datapatterns.testing.interleaving.diagnosis import backends_of, why_stuck
from datapatterns.testing.interleaving.loop import LoopThread
from datapatterns.testing.interleaving.pausing import pass_gate, pass_gate_async
from datapatterns.testing.interleaving.redis_gates import blocked_in_redis
from datapatterns.testing.interleaving.results import DivergedError, ScheduleError, StuckError
from datapatterns.testing.interleaving.servers import Backend
from datapatterns.testing.interleaving.stage import Stage
from datapatterns.testing.interleaving.stillness import Stillness, is_idle
from datapatterns.testing.interleaving.story import Happening, Story
from datapatterns.testing.interleaving.tasks import CURRENT, MOVING, Board, State, Task, TaskCrashed
from datapatterns.testing.interleaving.tokens import to_token

_FIRST_LOOK_SECONDS = 0.002
_LOOK_SECONDS_MAX = 0.02
_LOOK_GROWTH = 1.5
_FAREWELL_SECONDS = 2.0
# Who waits for a lock, looks for a deadlock after its deadlock_timeout; this much is granted.
_DEADLOCK_LOOK_SECONDS = 0.004

_UNFINISHED = "a task is a function or a coroutine function; what it has returned never ran"


class Scheduler:
    """Runs the tasks of one schedule.

    Args:
        stage: Where their connections meet.
        choose: Decides who goes next.
        loop: Where asynchronous tasks run; it belongs to another thread.
        max_steps: More gates than that are a livelock.
        stuck_after_seconds: How long nobody may move.
        start_gate: What a task does before its first round trip is scheduled, too.
    """

    def __init__(
        self,
        stage: Stage,
        choose: Chooser,
        *,
        loop: LoopThread,
        max_steps: int,
        stuck_after_seconds: float,
        start_gate: bool,
    ) -> None:
        self._stage, self._choose, self._loop = stage, choose, loop
        self._max_steps, self._stuck_after_seconds = max_steps, stuck_after_seconds
        self._start_gate = start_gate
        self._board = Board()
        self._stillness = Stillness()
        self.tasks: list[Task] = []
        self.choices: list[Choice] = []
        self.story = Story()

    def run(self, functions: Mapping[str, Callable[[], Any]]) -> dict[str, Task]:
        """Run the functions to their end and return their tasks by name.

        Raises:
            StuckError: They do not end.
            DivergedError: The chooser wants what is not there.
        """
        tasks = [
            Task(name, function, self._board, stage=self._stage)
            for name, function in functions.items()
        ]
        self.story.tasks = [task.name for task in tasks]
        self._stage.insiders.add(threading.get_ident())
        self._stage.refusals.clear()
        try:
            for task in tasks:
                # One after the other: what they do before their first gates happens in order.
                self.tasks.append(task)
                self._start(task)
                self._settled(starting=True)
            while ready := self._settled():
                self._open_one(ready)
            self._check_that_all_was_told()
            self._check_that_refusals_are_known()
        finally:
            self._bury()
            self._stage.insiders.clear()
        return {task.name: task for task in tasks}

    def _open_one(self, ready: list[Task]) -> None:
        if len(self.choices) >= self._max_steps:
            self._give_up(StuckError, f"a livelock: no end after {self._max_steps} steps")
        try:
            choice = self._choose([task.gate for task in ready if task.gate])
        except UnreadyError as error:
            self._give_up(
                DivergedError,
                f"step {len(self.choices) + 1}: {error}; the code under test does not do the same "
                "each time, or not what it did when the token was printed",
            )
        task = next((task for task in ready if task.name == choice.task), None)
        if task is None:
            names = sorted(task.name for task in ready)
            raise ValueError(f"the chooser took {choice.task!r}, which is none of {names}")
        self.choices.append(choice)
        self.story.add(task.name, task.last_label, Happening.STEP, choice.fault)
        with self._board.changed:
            task.open(choice.fault)

    def _check_that_refusals_are_known(self) -> None:
        refused = [*self._stage.refusals, *(task.refusal for task in self.tasks if task.refusal)]
        if refused and not any(isinstance(task.error, RuntimeError) for task in self.tasks):
            # It was raised in a thread, or in a branch, whose errors nobody looks at.
            raise refused[0]

    def _check_that_all_was_told(self) -> None:
        if isinstance(self._choose, Replaying) and (more := self._choose.left()):
            self._give_up(
                DivergedError, f"all tasks have ended, and {more} steps of the schedule are left"
            )

    def _give_up(self, kind: type[ScheduleError], reason: str) -> NoReturn:
        __tracebackhide__ = True
        self._tell()
        raise kind(reason, story=self.story, token=to_token(self.choices)) from None

    def _tell(self) -> None:
        # In the order of tasks, not of arrival: two that go on at once may arrive in any order.
        with self._board.changed:
            for task in self.tasks:
                for text, happening in task.news:
                    self.story.add(task.name, text, happening)
                task.news.clear()

    # -- starting and ending -------------------------------------------------------------------

    def _start(self, task: Task) -> None:
        if inspect.iscoroutinefunction(task.function):
            self._start_async(task, task.function)
            return
        task.thread = threading.Thread(
            target=copy_context().run, args=(self._run, task), name=f"task {task.name}", daemon=True
        )
        task.thread.start()

    def _start_async(self, task: Task, function: Callable[[], Any]) -> None:
        task.thread = None
        loop = self._loop.get()
        if self._loop.ident is not None:
            self._stage.insiders.add(self._loop.ident)
        running = asyncio.run_coroutine_threadsafe(self._run_async(task, function), loop)
        task.cancel = running.cancel

    def _run(self, task: Task) -> None:
        CURRENT.set(task)
        try:
            if self._start_gate:
                pass_gate(Gate(task.name, "start", in_server=False))
            result = task.function()
        except TaskCrashed:
            self._end(task, State.CRASHED)
        except BaseException as error:  # noqa: BLE001 -- a task's error is an outcome
            self._end(task, State.FAILED, error=error)
        else:
            if inspect.iscoroutine(result):  # a lambda that calls a coroutine function
                self._start_async(task, lambda: result)
            elif _is_unfinished(result):
                self._end(task, State.FAILED, error=TypeError(_UNFINISHED))
            else:
                self._end(task, State.DONE, result=result)

    async def _run_async(self, task: Task, function: Callable[[], Any]) -> None:
        CURRENT.set(task)
        try:
            if self._start_gate and function is task.function:
                await pass_gate_async(Gate(task.name, "start", in_server=False))
            result = await function()
            if _is_unfinished(result):
                raise TypeError(_UNFINISHED)  # noqa: TRY301 -- as if it had raised it
        except TaskCrashed:
            self._end(task, State.CRASHED)
        except BaseException as error:  # noqa: BLE001 -- a task's error is an outcome
            self._end(task, State.FAILED, error=error)
        else:
            self._end(task, State.DONE, result=result)

    def _end(
        self,
        task: Task,
        state: State,
        *,
        result: Any = None,
        error: BaseException | None = None,
    ) -> None:
        CURRENT.set(None)
        self._stage.insiders.add(threading.get_ident())
        if task.dead:
            state, error = State.CRASHED, None
        task.hang_up()
        task.end(state, result=result, error=error)

    def _bury(self) -> None:
        """Let everybody who is left die as a process does, and wait for their threads."""
        with self._board.changed:
            for task in self.tasks:
                task.dead = task.dead or task.state in MOVING or task.state is State.PARKED
                if task.state is State.PARKED:
                    task.open(None)
            left = [task for task in self.tasks if task.state in MOVING]
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while left and time.monotonic() < deadline:
            for task in left:
                task.cancel()
                for link in [*task.links, *task.pending] if task.thread else ():
                    link.interrupt()
            self._pause(self._board.moves, _LOOK_SECONDS_MAX)
            left = [task for task in left if task.state in MOVING]
        for task in self.tasks:
            if task.thread is not None and task not in left:
                task.thread.join()

    # -- when is it somebody's turn? -------------------------------------------------------------

    def _settled(self, *, starting: bool = False) -> list[Task]:
        """Wait until nobody moves; return those who are parked."""
        began = time.monotonic()
        self._wait_until_still(starting=starting)
        if not self._in_state(State.WAITING):
            self._stage.learn(time.monotonic() - began)
        while self._branches_out():
            self._pause(self._board.moves, _LOOK_SECONDS_MAX)
            self._wait_until_still(starting=starting)
        self._tell()
        return self._in_state(State.PARKED)

    def _wait_until_still(self, *, starting: bool) -> None:
        # On a busy machine all takes longer: looking too soon would make it busier still.
        patience = max(_FIRST_LOOK_SECONDS, 2 * self._stage.step_seconds)
        patience, since, last = min(patience, _LOOK_SECONDS_MAX), time.monotonic(), -1
        while moving := self._in_state(*MOVING):
            with self._board.changed:
                moves = self._board.moves
                moving = [task for task in moving if task.state in MOVING]
            if moves != last:
                since, last = time.monotonic(), moves
            if any(task.state is State.RUNNING for task in moving) and self._pause(moves, patience):
                continue
            # What was heard while somebody moved may be stale: one COMMIT on its way is enough.
            if self._look(moving, moves):
                if (left := _left_to_look_for_deadlocks(moving)) > 0:
                    self._pause(moves, left)
                    continue
                if starting or self._in_state(State.PARKED):
                    break
                self._pause(moves, patience)  # a deadlock: the server will break it
            if time.monotonic() - since > self._stuck_after_seconds:
                self._give_up(StuckError, why_stuck(self.tasks, self._stage.servers))
            patience = min(patience * _LOOK_GROWTH, _LOOK_SECONDS_MAX)

    def _branches_out(self) -> bool:
        """Return whether a parked task does something else at the same time."""
        parked = self._in_state(State.PARKED)
        if any(task.thread is None for task in parked):
            # Its other branches, if it has any, get to their gates, and are refused there.
            is_idle(self._loop.get())
        return any(task.in_flight for task in parked)

    def _look(self, moving: Sequence[Task], moves: int) -> bool:
        """Ask where the moving tasks are; return whether all of them wait."""
        owners = {backend: task for task in self.tasks for backend in backends_of(task)}
        asked = [backend for backend, task in owners.items() if task in moving and task.in_flight]
        blocked = self._stage.servers.blocked(asked, by=owners)
        waits = {}
        for task in moving:
            for backend in backends_of(task) & blocked.keys():
                waits[task] = f"for {_names(blocked[backend], owners, task)}"
            if task not in waits and (where := self._waits_elsewhere(task)):
                waits[task] = where
        with self._board.changed:
            if self._board.moves != moves:
                return False
            for task in moving:
                if task in waits:
                    task.waits_for(waits[task])
                else:
                    task.state = State.RUNNING
        return len(waits) == len(moving)

    def _waits_elsewhere(self, task: Task) -> str:
        asked = task.asked
        if task.pending:
            return "in Redis" if blocked_in_redis(task) else ""
        if task.in_flight:
            return ""
        loop = None if task.thread else self._loop.get()
        # It may have asked a server meanwhile, and be back already: then it was not still.
        still = self._stillness.of(task, loop) and task.asked == asked
        return "in this process" if still else ""

    def _in_state(self, *states: State) -> list[Task]:
        return [task for task in self.tasks if task.state in states]

    def _pause(self, moves: int, seconds: float) -> bool:
        """Wait for a move for so long; return whether there was one."""
        with self._board.changed:
            return self._board.changed.wait_for(lambda: self._board.moves != moves, timeout=seconds)


def _is_unfinished(result: object) -> bool:
    kinds = (inspect.isgenerator, inspect.isasyncgen, inspect.isawaitable)
    return any(is_one(result) for is_one in kinds)


def _left_to_look_for_deadlocks(moving: Sequence[Task]) -> float:
    # Who has found none does not look again. So the last to wait is the one who finds it.
    since = [task.waits_since for task in moving if task.in_flight]
    return max(since, default=0.0) + _DEADLOCK_LOOK_SECONDS - time.monotonic()


def _names(blockers: Sequence[Backend], owners: Mapping[Backend, Task], waiter: Task) -> str:
    names = {owners[each].name for each in blockers if each in owners}
    if any(each not in owners for each in blockers):
        names.add("a session outside the schedule")
    return " and ".join("itself" if name == waiter.name else name for name in sorted(names))
