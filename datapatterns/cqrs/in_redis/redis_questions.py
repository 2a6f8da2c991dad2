"""What can be asked of a read model in Redis, and what the answers mean; without a client.

Every question is asked in one transaction of Redis, together with the checkpoint and with the size
that the structure should have.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from datapatterns.cqrs.in_redis.json_text import json_value
from datapatterns.cqrs.in_redis.redis_checkpoint import (
    FIELDS,
    Checkpoint,
    decoded,
    is_of_another_type,
    read_checkpoint,
)
from datapatterns.cqrs.in_redis.redis_keys import RedisKeys, Structure, size_field
from datapatterns.errors import (
    ForeignReadModelError,
    ReadModelBuildingError,
    ReadModelDamagedError,
    ReadModelDocumentError,
)

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """One command about one structure.

    Attributes:
        structure: Which one.
        ask: Adds the command for a key to a pipeline, whichever client's.
        read: Makes of the answer what was asked for.
    """

    structure: Structure
    ask: Callable[[Any, str], object]
    read: Callable[[Any], T]


def ask_checkpoint(pipe: Any, keys: RedisKeys) -> None:  # noqa: ANN401 -- of any client
    """Ask where the read model is."""
    pipe.hmget(keys.checkpoint, FIELDS)


def ask(pipe: Any, keys: RedisKeys, question: Question[Any]) -> None:  # noqa: ANN401
    """Ask a question, and what tells whether the answer counts."""
    ask_checkpoint(pipe, keys)
    pipe.hget(keys.sizes, size_field(question.structure))
    ask_size(pipe, keys, question.structure)
    question.ask(pipe, keys.of(*question.structure))


def ask_size(pipe: Any, keys: RedisKeys, structure: Structure) -> None:  # noqa: ANN401
    """Ask how many places there are in a structure."""
    key = keys.of(*structure)
    if structure.kind == "zset":
        pipe.zcard(key)
    else:
        pipe.hlen(key)


def checkpoint_in(keys: RedisKeys, answers: Sequence[Any]) -> Checkpoint:
    """Return the checkpoint of a whole read model.

    Raises:
        ForeignReadModelError: What lies where the checkpoint belongs is none.
        ReadModelBuildingError: It is not whole.
    """
    if is_of_another_type(answers[0]):
        raise ForeignReadModelError(
            keys.name, "what lies where its checkpoint belongs is none"
        ) from answers[0]
    checkpoint = read_checkpoint(answers[0])
    if checkpoint is None or not checkpoint.whole:
        position = None if checkpoint is None else checkpoint.position
        raise ReadModelBuildingError(keys.name, position=position)
    return checkpoint


def answer(keys: RedisKeys, question: Question[T], answers: Sequence[Any]) -> T:
    """Return what the answers to `ask` say.

    Raises:
        ForeignReadModelError: What lies where the checkpoint belongs is none.
        ReadModelBuildingError: The read model is not whole.
        ReadModelDamagedError: The structure is not as its runner left it.
    """
    checkpoint_in(keys, answers)
    recorded, size, found = answers[1:]
    if any(map(is_of_another_type, answers)) or str(size) != decoded(recorded or "0"):
        raise ReadModelDamagedError(keys.name, structure=question.structure.name)
    return question.read(found)


def hash_of(name: str) -> Question[dict[str, str]]:
    """All fields of a hash."""
    return Question(
        Structure("hash", name),
        lambda pipe, key: pipe.hgetall(key),
        lambda found: {decoded(field): decoded(value) for field, value in found.items()},
    )


def fields_of(name: str, fields: Collection[str]) -> Question[dict[str, str]]:
    """Those of ``fields`` that a hash has."""
    wanted = list(fields)
    return Question(
        Structure("hash", name),
        lambda pipe, key: pipe.hmget(key, wanted),
        lambda found: _present(wanted, found, decoded),
    )


def ranked_in(
    name: str, *, first: int, limit: int, highest_first: bool
) -> Question[list[tuple[str, int]]]:
    """Members by their rank.

    Raises:
        ValueError: ``limit`` is not positive, or ``first`` negative.
    """
    _check_page(first, limit)
    return Question(
        Structure("zset", name),
        lambda pipe, key: pipe.zrange(
            key, first, first + limit - 1, desc=highest_first, withscores=True
        ),
        _scored,
    )


def scored_in(
    name: str,
    *,
    low: int | None,
    high: int | None,
    first: int,
    limit: int,
    highest_first: bool,
) -> Question[list[tuple[str, int]]]:
    """Members whose scores are in a range.

    Raises:
        ValueError: ``limit`` is not positive, or ``first`` negative.
    """
    _check_page(first, limit)
    bounds = _bounds(low, high)
    start, end = reversed(bounds) if highest_first else bounds
    return Question(
        Structure("zset", name),
        lambda pipe, key: pipe.zrange(
            key,
            start,
            end,
            byscore=True,
            desc=highest_first,
            offset=first,
            num=limit,
            withscores=True,
        ),
        _scored,
    )


def count_in(name: str, *, low: int | None, high: int | None) -> Question[int]:
    """How many members have scores in a range."""
    return Question(
        Structure("zset", name), lambda pipe, key: pipe.zcount(key, *_bounds(low, high)), int
    )


def rank_of(name: str, member: str, *, highest_first: bool) -> Question[int | None]:
    """How many members come before one; None if it is not there."""
    return Question(
        Structure("zset", name),
        lambda pipe, key: pipe.zrevrank(key, member) if highest_first else pipe.zrank(key, member),
        lambda found: None if found is None else int(found),
    )


def scores_of(name: str, members: Collection[str]) -> Question[dict[str, int]]:
    """The scores of those of ``members`` that are there."""
    wanted = list(members)
    return Question(
        Structure("zset", name),
        lambda pipe, key: pipe.zmscore(key, wanted),
        lambda found: _present(wanted, found, int),
    )


def documents_of(
    name: str, keys: Collection[str], document_type: type[T] | None
) -> Question[dict[str, T]]:
    """Those documents of ``keys`` that are there."""
    wanted, read = list(keys), _document_reader(name, document_type)
    return Question(
        Structure("json", name),
        lambda pipe, key: pipe.hmget(key, wanted),
        lambda found: _present(wanted, found, read),
    )


def all_documents_of(name: str, document_type: type[T] | None) -> Question[dict[str, T]]:
    """All documents of a name."""
    read = _document_reader(name, document_type)
    return Question(
        Structure("json", name),
        lambda pipe, key: pipe.hgetall(key),
        lambda found: {decoded(key): read(text) for key, text in found.items()},
    )


def _present(wanted: Iterable[str], found: Iterable[Any], read: Callable[[Any], U]) -> dict[str, U]:
    pairs = zip(wanted, found, strict=True)
    return {name: read(value) for name, value in pairs if value is not None}


def _scored(found: Iterable[Any]) -> list[tuple[str, int]]:
    return [(decoded(member), int(score)) for member, score in found]


def _document_reader(name: str, document_type: type[T] | None) -> Callable[[Any], T]:
    if document_type is None:
        return lambda found: json_value(decoded(found))
    decode = msgspec.json.Decoder(document_type).decode

    def read(found: Any) -> T:  # noqa: ANN401 -- bytes or text
        try:
            return decode(found)
        except msgspec.MsgspecError as error:
            raise ReadModelDocumentError(name, document_type.__name__, str(error)) from error

    return read


def _bounds(low: int | None, high: int | None) -> tuple[str, str]:
    return "-inf" if low is None else str(low), "+inf" if high is None else str(high)


def _check_page(first: int, limit: int) -> None:
    if limit < 1:
        raise ValueError(f"at most {limit} members is none; ask for at least 1")
    if first < 0:
        raise ValueError(f"no member is before the first; ask from 0, not {first}")
