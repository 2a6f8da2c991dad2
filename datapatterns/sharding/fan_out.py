"""Ask several shards at once: in threads, or as tasks of an event loop.

Both promise the same: they return only when nobody works at any of the questions any more, however
one of them failed, and whoever interrupts. So no connection is used by two, or left in use.
"""

import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from sqlalchemy import Engine, event

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Questions = Mapping[str, Callable[[], T]]
"""What to ask, by the shard that it is for."""


class CancelledAfterwards(CancelledError):  # noqa: N818 -- it is none
    """A cancellation that came while something went to its end, and succeeded.

    Attributes:
        result: What came of it.
    """

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def told(self) -> CancelledError:
        """Return what the caller is told: ``asyncio.timeout`` of Python 3.11 takes no subclass."""
        told = CancelledError()
        told.__cause__ = self.__cause__
        return told


class Answer(Protocol[T_co]):
    """What came of one question."""

    def result(self) -> T_co:
        """Return the answer, or raise what the question raised."""
        ...

    def exception(self) -> BaseException | None:
        """Return what the question raised; None if it was answered."""
        ...


class FanOut(Protocol):
    """A way to ask several shards at once."""

    def answers(
        self, questions: Questions[T], *, interrupt: Callable[[], object] = lambda: None
    ) -> Mapping[str, Answer[T]]:
        """Ask, and return when all have answered or failed, in the order of the questions.

        Each question uses what no other one uses, such as a connection of its own.

        Args:
            questions: What to ask, by shard.
            interrupt: Makes them end soon; called if the caller is interrupted.
        """
        ...

    def in_turns(
        self, questions: Questions[T], *, interrupt: Callable[[], object] = lambda: None
    ) -> Mapping[str, Answer[T]]:
        """Do as `answers`, for questions that share objects, such as a session.

        One of them works at a time; only while it waits for its server do others.
        """
        ...

    def undisturbed(self, question: Callable[[], T], attempted: str) -> T:
        """Answer a question that must not be left in the middle, such as to commit.

        Args:
            question: What to do.
            attempted: What it is for, in the words of an error message.
        """
        ...


class InThreads:
    """Asks in the threads of an executor.

    It may have fewer threads than there are questions. A question that asks several shards itself
    does so one after the other: waiting for threads, it would hold one that others wait for.

    Args:
        executor: Whose threads.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def answers(
        self, questions: Questions[T], *, interrupt: Callable[[], object] = lambda: None
    ) -> Mapping[str, Answer[T]]:
        """Ask, and return when all have answered or failed, in the order of the questions."""
        if len(questions) <= 1 or _here.is_asking:
            return {name: _answered(question) for name, question in questions.items()}
        # All before the first is asked: an interrupt may come while the executor takes one on.
        asked: dict[str, Future[T]] = {name: Future() for name in questions}
        try:
            for name, question in questions.items():
                self._submit(name, partial(_asking, question, asked[name]))
            wait(asked.values())
        except BaseException:  # such as Ctrl-C: the connections are still in use
            begun = [future for future in asked.values() if not future.cancel()]
            interrupt()
            wait(begun)
            raise
        return asked

    def in_turns(
        self, questions: Questions[T], *, interrupt: Callable[[], object] = lambda: None
    ) -> Mapping[str, Answer[T]]:
        """Do as `answers`, for questions that share objects; one of them works at a time."""
        if _here.turn is not None:  # whoever asks has it
            return {name: _answered(question) for name, question in questions.items()}
        turn = threading.Lock()

        def taking_turns(question: Callable[[], T]) -> Callable[[], T]:
            def ask() -> T:
                with turn, _having(turn):
                    return question()

            return ask

        return self.answers(
            {name: taking_turns(each) for name, each in questions.items()}, interrupt=interrupt
        )

    def _submit(self, _shard: str, ask: Callable[[], None]) -> None:
        self._executor.submit(ask)

    def undisturbed(self, question: Callable[[], T], attempted: str) -> T:  # noqa: ARG002 -- nobody interrupts
        """Answer a question that must not be left in the middle, such as to commit."""
        return question()


class _Here(threading.local):
    """What the thread is at: whether it answers one of several questions, and whose turn it has."""

    is_asking = False
    turn: "threading.Lock | None" = None


_here = _Here()


def give_turns(engine: Engine) -> Engine:
    """Let who has the turn give it away while it waits for the server of ``engine``."""
    event.listen(engine, "do_execute", _execute)
    event.listen(engine, "do_executemany", _execute_many)
    return engine


def _execute(cursor: Any, statement: str, parameters: Any, _context: object) -> bool:  # noqa: ANN401 -- the driver's
    if _here.turn is None:
        return False  # as always
    with _waiting(_here.turn):
        cursor.execute(statement, parameters)
    return True


def _execute_many(cursor: Any, statement: str, parameters: Any, _context: object) -> bool:  # noqa: ANN401 -- the driver's
    if _here.turn is None:
        return False
    with _waiting(_here.turn):
        cursor.executemany(statement, parameters)
    return True


@contextmanager
def _waiting(turn: threading.Lock) -> Iterator[None]:
    turn.release()
    try:
        yield
    finally:
        turn.acquire()


@contextmanager
def _having(turn: threading.Lock) -> Iterator[None]:
    _here.turn = turn
    try:
        yield
    finally:
        _here.turn = None


def _asking(question: Callable[[], T], answer: "Future[T]") -> None:
    if not answer.set_running_or_notify_cancel():
        return
    _here.is_asking = True
    try:
        answer.set_result(question())
    except BaseException as error:  # noqa: BLE001 -- raised by whoever takes the answer
        answer.set_exception(error)
    finally:
        _here.is_asking = False


def _answered(question: Callable[[], T]) -> Answer[T]:
    answer: Future[T] = Future()
    try:
        answer.set_result(question())
    except Exception as error:  # noqa: BLE001 -- raised by whoever takes the answer
        answer.set_exception(error)
    return answer
