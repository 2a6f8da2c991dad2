"""Read what a `RedisProjection` has built, from asyncio."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from datapatterns.cqrs.in_redis.redis_checkpoint import Checkpoint
from datapatterns.cqrs.in_redis.redis_connection import redis_answers
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys
from datapatterns.cqrs.in_redis.redis_questions import (
    Question,
    all_documents_of,
    answer,
    ask,
    ask_checkpoint,
    checkpoint_in,
    count_in,
    documents_of,
    fields_of,
    hash_of,
    rank_of,
    ranked_in,
    scored_in,
    scores_of,
)
from datapatterns.event_sourcing.events import Position

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsyncRedisView:
    """A read model in Redis; each method does what the one of `RedisView` with its name does.

    Attributes:
        client: Of the Redis that it is in.
        keys: Its own.
        on_answer: Called with the checkpoint that lay beside what each answer was made of.
    """

    client: Redis | RedisCluster
    keys: RedisKeys
    on_answer: Callable[[Checkpoint], object] = field(
        default=lambda _: None, repr=False, compare=False
    )

    async def position(self) -> Position:
        """Return up to where the read model shows the log."""
        return await self._position()

    async def hash(self, name: str) -> dict[str, str]:
        """Return all fields of a hash; for one with many fields, ask for those you need."""
        return await self._answer(hash_of(name))

    async def fields(self, name: str, fields: Collection[str]) -> dict[str, str]:
        """Return those of ``fields`` that the hash has."""
        return await self._answer(fields_of(name, fields)) if fields else {}

    async def top(self, name: str, limit: int = 10) -> list[tuple[str, int]]:
        """Return at most ``limit`` members of a sorted set with their scores, highest first."""
        return await self.ranked(name, limit=limit)

    async def ranked(
        self, name: str, *, first: int = 0, limit: int = 100, highest_first: bool = True
    ) -> list[tuple[str, int]]:
        """Return members of a sorted set with their scores, in their order."""
        question = ranked_in(name, first=first, limit=limit, highest_first=highest_first)
        return await self._answer(question)

    async def scored(
        self,
        name: str,
        low: int | None = None,
        high: int | None = None,
        *,
        first: int = 0,
        limit: int = 100,
        highest_first: bool = False,
    ) -> list[tuple[str, int]]:
        """Return members of a sorted set whose scores are from ``low`` to ``high``."""
        question = scored_in(
            name, low=low, high=high, first=first, limit=limit, highest_first=highest_first
        )
        return await self._answer(question)

    async def count(self, name: str, low: int | None = None, high: int | None = None) -> int:
        """Return how many members of a sorted set have scores from ``low`` to ``high``."""
        return await self._answer(count_in(name, low=low, high=high))

    async def rank(self, name: str, member: str, *, highest_first: bool = True) -> int | None:
        """Return how many members of a sorted set come before one; None if it is not there."""
        return await self._answer(rank_of(name, member, highest_first=highest_first))

    async def scores(self, name: str, members: Collection[str]) -> dict[str, int]:
        """Return the scores of those of ``members`` that the sorted set has."""
        return await self._answer(scores_of(name, members)) if members else {}

    @overload
    async def document(self, name: str, key: str) -> Any: ...  # noqa: ANN401 -- it is JSON
    @overload
    async def document(self, name: str, key: str, document_type: type[T]) -> T | None: ...
    async def document(
        self, name: str, key: str, document_type: type[T] | None = None
    ) -> T | Any | None:
        """Return one document, None if it is not there."""
        return (await self.documents(name, [key], document_type)).get(key)

    @overload
    async def documents(self, name: str, keys: Collection[str]) -> dict[str, Any]: ...
    @overload
    async def documents(
        self, name: str, keys: Collection[str], document_type: type[T] | None
    ) -> dict[str, T]: ...
    async def documents(
        self, name: str, keys: Collection[str], document_type: type[T] | None = None
    ) -> dict[str, T] | dict[str, Any]:
        """Return those documents of ``keys`` that are there."""
        return await self._answer(documents_of(name, keys, document_type)) if keys else {}

    @overload
    async def all_documents(self, name: str) -> dict[str, Any]: ...
    @overload
    async def all_documents(self, name: str, document_type: type[T]) -> dict[str, T]: ...
    async def all_documents(
        self, name: str, document_type: type[T] | None = None
    ) -> dict[str, T] | dict[str, Any]:
        """Return all documents of a name; if there are many, ask for those you need."""
        return await self._answer(all_documents_of(name, document_type))

    async def _position(self) -> Position:
        with redis_answers():
            pipe = self.client.pipeline(transaction=True)
            ask_checkpoint(pipe, self.keys)
            checkpoint = checkpoint_in(self.keys, await pipe.execute(raise_on_error=False))
        self.on_answer(checkpoint)
        return checkpoint.position

    async def _answer(self, question: Question[T]) -> T:
        with redis_answers():
            pipe = self.client.pipeline(transaction=True)
            ask(pipe, self.keys, question)
            answers = await pipe.execute(raise_on_error=False)
            value = answer(self.keys, question, answers)
        self.on_answer(checkpoint_in(self.keys, answers))
        return value
