"""Read what a `RedisProjection` has built, or be told that it is not whole."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from datapatterns.cqrs.in_redis.redis_checkpoint import Checkpoint
from datapatterns.cqrs.in_redis.redis_connection import redis_answers
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
from datapatterns.cqrs.in_redis.redis_read_model import RedisReadModel
from datapatterns.event_sourcing.events import Position

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RedisView:
    """A read model in Redis, as of one position of the log per answer.

    Every method raises `ReadModelBuildingError` while the read model is being built for the
    first time or again, instead of answering with part of it, `ReadModelDamagedError` if what is
    asked for is not as its runner left it, and `ServerUnavailableError` if Redis does not answer.

    Attributes:
        model: What is read.
        on_answer: Called with the checkpoint that lay beside what each answer was made of.
    """

    model: RedisReadModel
    on_answer: Callable[[Checkpoint], object] = field(
        default=lambda _: None, repr=False, compare=False
    )

    def position(self) -> Position:
        """Return up to where the read model shows the log."""
        return self._position()

    def hash(self, name: str) -> dict[str, str]:
        """Return all fields of a hash; for one with many fields, ask for those you need."""
        return self._answer(hash_of(name))

    def fields(self, name: str, fields: Collection[str]) -> dict[str, str]:
        """Return those of ``fields`` that the hash has."""
        return self._answer(fields_of(name, fields)) if fields else {}

    def top(self, name: str, limit: int = 10) -> list[tuple[str, int]]:
        """Return at most ``limit`` members of a sorted set with their scores, highest first."""
        return self.ranked(name, limit=limit)

    def ranked(
        self, name: str, *, first: int = 0, limit: int = 100, highest_first: bool = True
    ) -> list[tuple[str, int]]:
        """Return members of a sorted set with their scores, in their order.

        Members of equal scores are in the order of their bytes, or with ``highest_first`` in the
        reverse.

        Args:
            name: Which sorted set.
            first: From which rank on, for pages; the first is 0.
            limit: How many at most.
            highest_first: In which order.
        """
        question = ranked_in(name, first=first, limit=limit, highest_first=highest_first)
        return self._answer(question)

    def scored(
        self,
        name: str,
        low: int | None = None,
        high: int | None = None,
        *,
        first: int = 0,
        limit: int = 100,
        highest_first: bool = False,
    ) -> list[tuple[str, int]]:
        """Return members of a sorted set whose scores are from ``low`` to ``high``.

        Args:
            name: Which sorted set.
            low: The lowest score, itself included; None for any.
            high: The highest score, itself included; None for any.
            first: How many to leave out, for pages.
            limit: How many at most.
            highest_first: In which order.
        """
        question = scored_in(
            name, low=low, high=high, first=first, limit=limit, highest_first=highest_first
        )
        return self._answer(question)

    def count(self, name: str, low: int | None = None, high: int | None = None) -> int:
        """Return how many members of a sorted set have scores from ``low`` to ``high``."""
        return self._answer(count_in(name, low=low, high=high))

    def rank(self, name: str, member: str, *, highest_first: bool = True) -> int | None:
        """Return how many members of a sorted set come before one; None if it is not there."""
        return self._answer(rank_of(name, member, highest_first=highest_first))

    def scores(self, name: str, members: Collection[str]) -> dict[str, int]:
        """Return the scores of those of ``members`` that the sorted set has."""
        return self._answer(scores_of(name, members)) if members else {}

    @overload
    def document(self, name: str, key: str) -> Any: ...  # noqa: ANN401 -- it is JSON
    @overload
    def document(self, name: str, key: str, document_type: type[T]) -> T | None: ...
    def document(self, name: str, key: str, document_type: type[T] | None = None) -> T | Any | None:
        """Return one document, None if it is not there.

        Args:
            name: Which documents.
            key: Which of them.
            document_type: A dataclass, a ``msgspec.Struct`` or whatever msgspec decodes; unless
                given, the document comes as dicts, lists, text and numbers.

        Raises:
            ReadModelDocumentError: It is none of that type.
        """
        return (self.documents(name, [key], document_type)).get(key)

    @overload
    def documents(self, name: str, keys: Collection[str]) -> dict[str, Any]: ...
    @overload
    def documents(
        self, name: str, keys: Collection[str], document_type: type[T] | None
    ) -> dict[str, T]: ...
    def documents(
        self, name: str, keys: Collection[str], document_type: type[T] | None = None
    ) -> dict[str, T] | dict[str, Any]:
        """Return those documents of ``keys`` that are there.

        Raises:
            ReadModelDocumentError: One is none of that type.
        """
        return self._answer(documents_of(name, keys, document_type)) if keys else {}

    @overload
    def all_documents(self, name: str) -> dict[str, Any]: ...
    @overload
    def all_documents(self, name: str, document_type: type[T]) -> dict[str, T]: ...
    def all_documents(
        self, name: str, document_type: type[T] | None = None
    ) -> dict[str, T] | dict[str, Any]:
        """Return all documents of a name; if there are many, ask for those you need.

        Raises:
            ReadModelDocumentError: One is none of that type.
        """
        return self._answer(all_documents_of(name, document_type))

    def _position(self) -> Position:
        with redis_answers():
            pipe = self.model.client.pipeline(transaction=True)
            ask_checkpoint(pipe, self.model.keys)
            checkpoint = checkpoint_in(self.model.keys, pipe.execute(raise_on_error=False))
        self.on_answer(checkpoint)
        return checkpoint.position

    def _answer(self, question: Question[T]) -> T:
        with redis_answers():
            pipe = self.model.client.pipeline(transaction=True)
            ask(pipe, self.model.keys, question)
            answers = pipe.execute(raise_on_error=False)
            value = answer(self.model.keys, question, answers)
        self.on_answer(checkpoint_in(self.model.keys, answers))
        return value
