"""Read what a `RedisProjection` has built, or be told that it is not whole."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline

from datapatterns.cqrs.in_redis.redis_checkpoint import (
    RedisReadModel,
    decoded,
    read_checkpoint,
    redis_answers,
)
from datapatterns.errors import ReadModelBuildingError
from datapatterns.event_sourcing.events import Position


@dataclass(frozen=True, slots=True)
class RedisView:
    """A read model in Redis, as of one position of the log per answer.

    Every method raises `ReadModelBuildingError` while the read model is being built for the
    first time or again, instead of answering with part of it, and `ServerUnavailableError` if
    Redis does not answer.
    """

    model: RedisReadModel

    def position(self) -> Position:
        """Return up to where the read model shows the log."""
        return self._read(lambda _: None)[0]

    def hash(self, name: str) -> dict[str, str]:
        """Return all fields of a hash; for one with many fields, ask for those you need."""
        key = self.model.keys.of("hash", name)
        fields = self._read(lambda pipe: pipe.hgetall(key))[1]
        return {decoded(field): decoded(value) for field, value in fields.items()}

    def fields(self, name: str, fields: Collection[str]) -> dict[str, str]:
        """Return those of ``fields`` that the hash has."""
        if not fields:
            return {}
        key, wanted = self.model.keys.of("hash", name), list(fields)
        values = self._read(lambda pipe: pipe.hmget(key, wanted))[1]
        found = zip(wanted, values, strict=True)
        return {field: decoded(value) for field, value in found if value is not None}

    def top(self, name: str, limit: int = 10) -> list[tuple[str, int]]:
        """Return at most ``limit`` members of a sorted set with their scores, highest first."""
        if limit < 1:
            raise ValueError(f"at most {limit} members is none; ask for at least 1")
        key = self.model.keys.of("zset", name)
        ranked = self._read(lambda pipe: pipe.zrange(key, 0, limit - 1, desc=True, withscores=True))
        return [(decoded(member), int(score)) for member, score in ranked[1]]

    @redis_answers()
    def _read(self, ask: Callable[[Pipeline], object]) -> tuple[Position, Any]:
        pipe = self.model.client.pipeline(transaction=True)
        pipe.hgetall(self.model.keys.checkpoint)
        ask(pipe)
        raw, *answers = pipe.execute()
        checkpoint = read_checkpoint(raw)
        if checkpoint is None or not checkpoint.whole:
            position = None if checkpoint is None else checkpoint.position
            raise ReadModelBuildingError(self.model.keys.name, position=position)
        return checkpoint.position, answers[0] if answers else None
