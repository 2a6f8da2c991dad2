"""Processes that run several roles at once, as threads; and how their results come back."""

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Self

Role = Callable[[], Any]
"""What one thread does; it can be pickled."""


class CrewError(Exception):
    """A role failed; the message is its traceback."""


class Crews:
    """Processes at work; those that are still there at the end are ended.

    Args:
        crews: The roles of each process.
        begin: They wait for it; to start a process takes as long as thousands of events do.
    """

    def __init__(self, crews: Sequence[Sequence[Role]], begin: Event) -> None:
        context = get_context("spawn")
        self._pipes: list[Pipe[Any, Any]] = []
        self._processes: list[BaseProcess] = []
        self._results: list[Any] = []
        for roles in crews:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(theirs, roles, begin), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            if exc_type is not None:
                process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def are_done(self, *, within_seconds: float) -> bool:
        """Wait a little for results; tell whether all are there.

        Raises:
            CrewError: A role failed.
        """
        for pipe in wait(self._pipes, within_seconds):
            assert isinstance(pipe, Pipe)
            results, failure = pipe.recv()
            if failure:
                raise CrewError(failure)
            self._results += results
            self._pipes.remove(pipe)
            pipe.close()
        return not self._pipes

    def results(self) -> list[Any]:
        """Wait for all; return what each role returned."""
        while self._pipes:
            self.are_done(within_seconds=60)
        return self._results


def _serve(pipe: "Pipe[Any, Any]", roles: Sequence[Role], begin: Event) -> None:
    begin.wait()
    with ThreadPoolExecutor(len(roles)) as pool:
        futures = [pool.submit(role) for role in roles]
        try:
            pipe.send(([future.result() for future in futures], None))
        except BaseException:
            pipe.send(([], traceback.format_exc()))
            raise
