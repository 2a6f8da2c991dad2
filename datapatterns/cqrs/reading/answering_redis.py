"""Ask a read model in Redis, and see to it that all parts of the answer are of one moment."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from datapatterns.cqrs.in_redis.redis_checkpoint import Checkpoint
from datapatterns.cqrs.in_redis.redis_view import RedisView
from datapatterns.cqrs.in_redis.redis_view_async import AsyncRedisView
from datapatterns.errors import ReadModelBuildingError, ReadModelMovedError
from datapatterns.event_sourcing.events import Position

T = TypeVar("T")

TRIES_MAX: Final = 20
"""How often a question is asked again because the read model has moved on in the middle."""


@dataclass(frozen=True, slots=True)
class RedisQuestion(Generic[T]):
    """What is asked of a read model in Redis.

    Attributes:
        ask: May read as often as it likes; it is asked again if a page came between.
    """

    view: RedisView
    ask: Callable[[RedisView], T]

    def asked(
        self, build: str | None, is_enough: Callable[[Position], bool]
    ) -> tuple[Position | None, list[T]]:
        """Return as of which position the answer is, and a list with the answer.

        No position if ``build`` is not there, or not whole; an empty list then, and if its
        position is not enough.

        Raises:
            ReadModelMovedError: It has moved on in the middle, each time.
            ServerUnavailableError: Redis does not answer.
        """
        for _ in range(TRIES_MAX):
            moments: set[Checkpoint] = set()
            view = replace(self.view, on_answer=moments.add)
            try:
                position = view.position()
                values = [self.ask(view)] if is_enough(position) else []
            except ReadModelBuildingError:
                return None, []
            if len(moments) == 1:
                (moment,) = moments
                return (position, values) if moment.build == build else (None, [])
        raise moved(self.view.model.keys.name)


@dataclass(frozen=True, slots=True)
class AsyncRedisQuestion(Generic[T]):
    """Does as `RedisQuestion` does, in a task."""

    view: AsyncRedisView
    ask: Callable[[AsyncRedisView], Awaitable[T]]

    async def asked(
        self, build: str | None, is_enough: Callable[[Position], bool]
    ) -> tuple[Position | None, list[T]]:
        """Do as `RedisQuestion.asked` does."""
        for _ in range(TRIES_MAX):
            moments: set[Checkpoint] = set()
            view = replace(self.view, on_answer=moments.add)
            try:
                position = await view.position()
                values = [await self.ask(view)] if is_enough(position) else []
            except ReadModelBuildingError:
                return None, []
            if len(moments) == 1:
                (moment,) = moments
                return (position, values) if moment.build == build else (None, [])
        raise moved(self.view.keys.name)


def moved(name: str) -> ReadModelMovedError:
    """Return the error of a question that takes longer than a page."""
    return ReadModelMovedError(
        name, f"has moved on {TRIES_MAX} times while it was read; ask for less at once"
    )
