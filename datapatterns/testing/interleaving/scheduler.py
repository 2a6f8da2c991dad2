"""One schedule: one task moves at a time; all others are parked, blocked, waiting or done."""

# ruff: noqa: ANN401 -- what drivers, and the functions of users, take and return

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from typing import Any

from datapatterns.testing.interleaving.choosing import Choice, Chooser
from datapatterns.testing.interleaving.servers import Backend, Servers
from datapatterns.testing.interleaving.stillness import Stillness
from datapatterns.testing.interleaving.story import Happening, Story
from datapatterns.testing.interleaving.tasks import CURRENT, MOVING, Board, State, Task, TaskCrashed

_FIRST_LOOK_SECONDS = 0.002
_LOOK_SECONDS_MAX = 0.02
_LOOK_GROWTH = 1.5
_FAREWELL_SECONDS = 5.0


class StuckError(AssertionError):
    """The tasks of a schedule go neither forwards nor to their end."""


class Scheduler:
    """Runs the tasks of one schedule.

    Args:
        servers: Asked who is blocked.
        choose: Decides who goes next.
        loop: Where asynchronous tasks run; it belongs to another thread.
        max_steps: More gates than that are a livelock.
        stuck_after_seconds: How long nobody may move.
    """

    def __init__(
        self,
        servers: Servers,
        choose: Chooser,
        *,
        loop: Callable[[], asyncio.AbstractEventLoop],
        max_steps: int,
        stuck_after_seconds: float,
    ) -> None:
        self._servers, self._choose, self._loop = servers, choose, loop
        self._max_steps, self._stuck_after_seconds = max_steps, stuck_after_seconds
        self._board = Board()
        self._stillness = Stillness()
        self.choices: list[Choice] = []
        self.story = Story()

    def run(self, functions: Mapping[str, Callable[[], Any]]) -> dict[str, Task]:
        """Run the functions to their end and return their tasks by name.

        Raises:
            StuckError: They do not end.
            DivergedError: The chooser wants what is not there.
        """
        tasks = [Task(name, function, self._board) for name, function in functions.items()]
        self.story.tasks = [task.name for task in tasks]
        for task in tasks:
            self._start(task)
        try:
            while ready := self._settled(tasks):
                if len(self.choices) >= self._max_steps:
                    raise StuckError(f"no end after {self._max_steps} steps")
                self._open_one(tasks, ready)
        finally:
            self._bury(tasks)
        return {task.name: task for task in tasks}

    def _open_one(self, tasks: list[Task], ready: list[Task]) -> None:
        gates = [task.gate for task in ready if task.gate]
        choice = self._choose(gates)
        self.choices.append(choice)
        task = next(task for task in tasks if task.name == choice.task)
        self.story.add(task.name, task.last_label, Happening.STEP, choice.fault)
        with self._board.changed:
            task.open(choice.fault)

    # -- starting and ending -------------------------------------------------------------------

    def _start(self, task: Task) -> None:
        if inspect.iscoroutinefunction(task.function):
            running = asyncio.run_coroutine_threadsafe(self._run_async(task), self._loop())
            task.cancel = running.cancel
            return
        task.thread = threading.Thread(
            target=copy_context().run, args=(self._run, task), name=f"task {task.name}", daemon=True
        )
        task.thread.start()

    def _run(self, task: Task) -> None:
        CURRENT.set(task)
        try:
            result = task.function()
        except TaskCrashed:
            self._end(task, State.CRASHED)
        except BaseException as error:  # noqa: BLE001 -- a task's error is an outcome
            self._end(task, State.FAILED, error=error)
        else:
            self._end(task, State.DONE, result=result)

    async def _run_async(self, task: Task) -> None:
        CURRENT.set(task)
        try:
            result = await task.function()
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
        if task.dead:
            state, error = State.CRASHED, None
        # What it leaves open, a process's end would close.
        task.hang_up(all_links=task.dead)
        self.story.end(task.name, state.name.lower(), error)
        task.end(state, result=result, error=error)

    def _bury(self, tasks: list[Task]) -> None:
        """Let everybody who is left die as a process does."""
        with self._board.changed:
            for task in tasks:
                task.dead = task.dead or task.state in MOVING or task.state is State.PARKED
                if task.state is State.PARKED:
                    task.open(None)
        if left := [task for task in tasks if task.state in MOVING]:
            self._servers.terminate(_backends(left))
            for task in left:
                task.cancel()
        with self._board.changed:
            self._board.changed.wait_for(
                lambda: not any(task.state in MOVING for task in tasks), timeout=_FAREWELL_SECONDS
            )

    # -- when is it somebody's turn? -------------------------------------------------------------

    def _settled(self, tasks: list[Task]) -> list[Task]:
        """Wait until nobody moves; return those who are parked."""
        patience, began = _FIRST_LOOK_SECONDS, time.monotonic()
        while moving := [task for task in tasks if task.state in MOVING]:
            with self._board.changed:
                moves = self._board.moves
                moving = [task for task in moving if task.state in MOVING]
            if any(task.state is State.RUNNING for task in moving) and self._pause(moves, patience):
                continue
            # What was heard while somebody moved may be stale: one COMMIT on its way is enough.
            if self._look(tasks, moving, moves):
                if any(task.state is State.PARKED for task in tasks):
                    break
                self._pause(moves, patience)  # a deadlock: the server will break it
            if self._board.moves == moves and time.monotonic() - began > self._stuck_after_seconds:
                raise StuckError(self._why_stuck(tasks))
            patience = min(patience * _LOOK_GROWTH, _LOOK_SECONDS_MAX)
        return [task for task in tasks if task.state is State.PARKED]

    def _look(self, tasks: list[Task], moving: list[Task], moves: int) -> bool:
        """Ask where the moving tasks are; return whether all of them wait."""
        blocked = self._servers.blocked(_backends(moving), by=_backends(tasks))
        waits = {}
        for task in moving:
            if blocked.intersection(_backends([task])):
                waits[task] = "blocked by another session"
            elif not task.in_flight and self._is_still(task):
                waits[task] = "waits in this process"
        with self._board.changed:
            if self._board.moves != moves:
                return False
            for task in moving:
                if task in waits and task.state is State.RUNNING:
                    self.story.add(task.name, waits[task], Happening.WAIT)
                task.state = State.WAITING if task in waits else State.RUNNING
        return len(waits) == len(moving)

    def _is_still(self, task: Task) -> bool:
        return self._stillness.of(task, None if task.thread else self._loop())

    def _pause(self, moves: int, seconds: float) -> bool:
        """Wait for a move for so long; return whether there was one."""
        with self._board.changed:
            return self._board.changed.wait_for(lambda: self._board.moves != moves, timeout=seconds)

    def _why_stuck(self, tasks: list[Task]) -> str:
        lines = [f"nobody has moved for {self._stuck_after_seconds:g} s:"]
        lines += [
            f"  {task.name} {task.state.name.lower()} after {task.last_label!r}"
            for task in tasks
            if task.state in MOVING
        ]
        lines += [
            f"  session {pid} waits for {', '.join(map(str, blockers))}"
            for pid, blockers in self._servers.blockers(_backends(tasks))
        ]
        return "\n".join(lines)


def _backends(tasks: Iterable[Task]) -> set[Backend]:
    return {
        backend
        for task in tasks
        for link in list(task.links)
        if (backend := link.backend()) is not None
    }
