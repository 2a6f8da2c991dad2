"""Ask several shards at once as tasks of an event loop; needs the ``async`` extra.

For code in a greenlet of SQLAlchemy's, as sessions and operations are run in on asyncio.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

from datapatterns.errors import OutcomeUnknownError
from datapatterns.sharding.fan_out import Answer, CancelledAfterwards, Questions

T = TypeVar("T")


class InTasks:
    """Asks in tasks of the running event loop.

    Tasks change places only where they wait for a server, so objects can be shared as they are. A
    cancellation goes to all of them, and on to the caller when the last one has ended.
    """

    def answers(
        self,
        questions: Questions[T],
        *,
        interrupt: Callable[[], object] = lambda: None,  # noqa: ARG002 -- cancelled tasks end soon
    ) -> Mapping[str, Answer[T]]:
        """Ask, and return when all have answered or failed, in the order of the questions."""
        return await_only(_answers(questions))

    def in_turns(
        self,
        questions: Questions[T],
        *,
        interrupt: Callable[[], object] = lambda: None,  # noqa: ARG002 -- as above
    ) -> Mapping[str, Answer[T]]:
        """Do as `answers`, for questions that share objects."""
        return self.answers(questions)

    def undisturbed(self, question: Callable[[], T], attempted: str) -> T:
        """Answer a question that must not be left in the middle, such as to commit.

        A cancellation comes out when it has ended. If it had succeeded by then, that is told by an
        `OutcomeUnknownError` as the cause, as of other commits.
        """
        return await_only(_undisturbed(question, attempted))


async def to_the_end(operation: Callable[[], object]) -> None:
    """Run what gives connections back, such as `Parts.close`, whoever cancels meanwhile."""
    task = asyncio.create_task(_asking(operation))
    await _until_done([task], cancel_them=False)
    task.result()


async def _answers(questions: Questions[T]) -> Mapping[str, Answer[T]]:
    tasks = {name: asyncio.create_task(_asking(each)) for name, each in questions.items()}
    await _until_done(tasks.values(), cancel_them=True)
    return tasks


async def _undisturbed(question: Callable[[], T], attempted: str) -> T:
    task = asyncio.create_task(_asking(question))
    try:
        await _until_done([task], cancel_them=False)
    except asyncio.CancelledError as cancelled:
        if (error := task.exception()) is not None:
            raise cancelled from error
        unknown = OutcomeUnknownError(attempted, reason="cancelled while it was committed")
        raise CancelledAfterwards(task.result()) from unknown
    return task.result()


def _asking(question: Callable[[], T]) -> Coroutine[Any, Any, T]:
    return greenlet_spawn(question)


async def _until_done(tasks: Iterable["asyncio.Task[Any]"], *, cancel_them: bool) -> None:
    """Wait for all, whatever comes; then raise the cancellation that came, if one did."""
    pending, cancelled = set(tasks), None
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            for task in pending:
                if cancel_them:
                    task.cancel()
            pending = {task for task in pending if not task.done()}
    if cancelled is not None:
        raise cancelled
