"""Processes that write at once; threads of one process would take turns in the interpreter."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self, TypeAlias

from sqlalchemy import URL

Batch: TypeAlias = Callable[[], int]
"""Does a batch of the job and returns how many operations it was."""

Writer: TypeAlias = Callable[[URL, int], AbstractContextManager[Batch]]
"""Connects the writer of that number; a function of a module, as a process has to find it."""


class Writers:
    """Some processes that wait, connected, until each is told to do its batch."""

    def __init__(self, writer: Writer, url: URL, *, count: int) -> None:
        context = get_context("spawn")
        self._pipes: list[Pipe[Any, Any]] = []
        self._processes: list[BaseProcess] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, writer, url, number), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def run(self) -> int:
        """Let all do a batch at once; return how many operations they did together."""
        for pipe in self._pipes:
            pipe.send("go")
        return sum(pipe.recv() for pipe in self._pipes)


def _serve(pipe: "Pipe[Any, Any]", writer: Writer, url: URL, number: int) -> None:
    with writer(url, number) as batch:
        pipe.send("ready")
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            pipe.send(batch())
