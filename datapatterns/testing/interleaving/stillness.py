"""Whether a task that makes no round trip computes, or waits for something in this process."""

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

from datapatterns.testing.interleaving.tasks import Task

_STILL_SECONDS = 0.015
_STILL_FRAME_SECONDS = 0.15
_PING_SECONDS = 0.05
_PING_TURNS = 16
_THREADS = Path("/proc/self/task")


class _Sign(NamedTuple):
    mark: object
    since: float


class Stillness:
    """Watches the tasks of a schedule.

    A wrong guess costs no wrong verdict: each interleaving is a real one. It costs a schedule that
    replays differently, on a machine so busy that a thread gets no time at all.
    """

    def __init__(self) -> None:
        self._signs: WeakKeyDictionary[Task, _Sign] = WeakKeyDictionary()

    def of(self, task: Task, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Return whether a task between two round trips seems to wait."""
        if task.thread is None:
            return loop is not None and is_idle(loop)
        return self._thread_is_still(task, task.thread)

    def _thread_is_still(self, task: Task, thread: threading.Thread) -> bool:
        mark, seconds = _sign_of_life(thread)
        now, last = time.monotonic(), self._signs.get(task)
        if last is None or last.mark != mark:
            self._signs[task] = _Sign(mark, now)
            return False
        return now - last.since >= seconds


def _sign_of_life(thread: threading.Thread) -> tuple[object, float]:
    """Return what changes while the thread computes, and how long unchanged means waiting."""
    folder = _THREADS / str(thread.native_id)
    try:
        # Nanoseconds on a processor; and R is a thread that would run if it were let.
        used = (folder / "schedstat").read_text().split()[0]
        runs = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:
        frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 -- documented for this
        return (id(frame), frame.f_lasti if frame else None), _STILL_FRAME_SECONDS
    return (used, time.monotonic() if runs else None), _STILL_SECONDS


def is_idle(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether a loop in another thread has nothing to do but wait."""
    # A wake-up passes through several callbacks, each of which runs one turn of the loop later.
    answered = threading.Event()

    def turn(left: int) -> None:
        if left:
            loop.call_soon(turn, left - 1)
        else:
            answered.set()

    loop.call_soon_threadsafe(turn, _PING_TURNS)
    return answered.wait(_PING_SECONDS)
