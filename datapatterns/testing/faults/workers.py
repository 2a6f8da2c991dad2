"""Let a worker process die at a named failpoint, or hold a thread there."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from datapatterns import failpoints
from datapatterns.failpoints import EXIT_CODE, FAILPOINTS, VARIABLE

WORKER_SECONDS = 60.0
"""How long a worker may take to reach its failpoint unless told otherwise."""

_OUTPUT_SHOWN = 2_000
_CALL = (
    "import importlib, sys\n"
    "module, name, *arguments = sys.argv[1:]\n"
    "getattr(importlib.import_module(module), name)(*arguments)\n"
)


class FailpointNotReachedError(AssertionError):
    """The code never came to the failpoint, so nothing has been tested.

    Attributes:
        failpoint: Its name.
    """

    def __init__(self, failpoint: str, happened: str) -> None:
        super().__init__(f"failpoint {failpoint!r} was not reached: {happened}")
        self.failpoint = failpoint


def run_until_failpoint(
    worker: Sequence[str] | Callable[..., object],
    failpoint: str,
    *arguments: str,
    visit: int = 1,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = WORKER_SECONDS,
) -> str:
    """Start a process, and return what it printed when it has died at the failpoint.

    It ends there as by SIGKILL: nothing is flushed, closed or rolled back. Its exit code is 86.

    Args:
        worker: A command, or a function of a module, which is called in a new Python.
        failpoint: One of ``datapatterns.failpoints.FAILPOINTS``.
        arguments: What the command or the function is given.
        visit: At which visit to die, counted from 1.
        environment: What to set in addition to this process's variables.
        timeout_seconds: How long it may take; then it is killed.

    Raises:
        FailpointNotReachedError: It ended otherwise, or was killed after ``timeout_seconds``; the
            message has the end of its output.
        ValueError: There is no such failpoint, or another Python couldn't find the function.
    """
    if failpoint not in FAILPOINTS:
        raise ValueError(
            f"{failpoint!r} is no failpoint; there are {', '.join(sorted(FAILPOINTS))}"
        )
    command = [*(_calling(worker) if callable(worker) else worker), *arguments]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        **(environment or {}),
        VARIABLE: f"{failpoint}@{visit}",
    }
    try:
        ended = subprocess.run(  # noqa: S603 -- the command is the test's
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        output = error.output.decode(errors="replace") if isinstance(error.output, bytes) else ""
        happened = f"the worker ran for {timeout_seconds:g} s{_end_of(output)}"
        raise FailpointNotReachedError(failpoint, happened) from error
    if ended.returncode != EXIT_CODE:
        happened = f"the worker ended with {ended.returncode}{_end_of(ended.stdout)}"
        raise FailpointNotReachedError(failpoint, happened)
    return ended.stdout


@contextmanager
def armed(name: str, action: Callable[[], object], *, visit: int | None = 1) -> Iterator[None]:
    """Do ``action`` at a failpoint of this process within the block, in any thread.

    Args:
        name: One of ``datapatterns.failpoints.FAILPOINTS``.
        action: Called without arguments. What it raises, the code under test raises.
        visit: At which visit, counted from 1; None for each of them.

    Raises:
        FailpointNotReachedError: The block ended well and the action was never called.
        ValueError: There is no such failpoint, or it is armed already.
    """
    reached = threading.Event()

    def act() -> object:
        reached.set()
        return action()

    with failpoints.armed(name, act, visit=visit):
        yield
    if not reached.is_set():
        raise FailpointNotReachedError(name, "the block ended before")


class Halt:
    """A thread that stands at a failpoint; made by ``halted_at``."""

    def __init__(self, failpoint: str, *, timeout_seconds: float) -> None:
        self._failpoint = failpoint
        self._timeout_seconds = timeout_seconds
        self._reached = threading.Event()
        self._released = threading.Event()

    def wait(self) -> None:
        """Return when a thread stands there.

        Raises:
            FailpointNotReachedError: None does, in time.
        """
        if not self._reached.wait(self._timeout_seconds):
            raise FailpointNotReachedError(self._failpoint, f"in {self._timeout_seconds:g} s")

    def release(self) -> None:
        """Let it go on."""
        self._released.set()

    def stand(self) -> None:
        """Stand here until released; called by the failpoint."""
        self._reached.set()
        if not self._released.wait(self._timeout_seconds):
            raise TimeoutError(f"nobody released {self._failpoint!r}; call release() in the test")


@contextmanager
def halted_at(
    name: str, *, visit: int = 1, timeout_seconds: float = WORKER_SECONDS
) -> Iterator[Halt]:
    """Hold the first thread that comes to a failpoint, until it is released or the block ends.

    Not for code that runs in an event loop: it would stand still with all its tasks.

    Raises:
        FailpointNotReachedError: The block ended well and no thread came.
        ValueError: There is no such failpoint, or it is armed already.
    """
    halt = Halt(name, timeout_seconds=timeout_seconds)
    with armed(name, halt.stand, visit=visit):
        try:
            yield halt
        finally:
            halt.release()


def _calling(function: Callable[..., object]) -> list[str]:
    module = getattr(function, "__module__", "__main__")
    name = getattr(function, "__qualname__", "<unnamed>")
    if module == "__main__" or not name.isidentifier():
        raise ValueError(
            f"{module}.{name} can't be imported by another Python; use a function of a module"
        )
    return [sys.executable, "-c", _CALL, module, name]


def _end_of(output: str) -> str:
    return f":\n{output.strip()[-_OUTPUT_SHOWN:]}" if output.strip() else ", and printed nothing"
