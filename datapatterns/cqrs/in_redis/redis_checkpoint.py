"""A read model in Redis and its checkpoint, which move together or not at all.

The checkpoint is a hash beside the data. It is the truth: a Redis that restarted from an older
dump holds older data and the older checkpoint, and going on from there is right. It says

- ``build``: which build the data belong to, as PostgreSQL knows it; any other is not ours;
- ``epoch``: the highest lease that has written; a lower one is refused;
- ``position``: how far the data are;
- ``target``: only while a build is not whole; readers are told;
- ``clearing``: only while leftovers of an earlier build are removed;
- ``torn``: only inside a script, so it shows if one broke off in the middle.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from datapatterns.cqrs.in_redis.redis_changes import Place
from datapatterns.cqrs.in_redis.redis_scripts import ADOPT, APPLY, BEGIN_CLEARING, CLEAR
from datapatterns.errors import ServerUnavailableError
from datapatterns.event_sourcing.events import Position
from datapatterns.failpoints import failpoint

_KEYS_PER_CALL: Final = 500
_PARTS: Final = 2  # of a key, after what all keys begin with: kind and name


class LaterEpochError(Exception):
    """Redis has been written under a later lease than the caller's."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """On whose behalf Redis is written: which build, under which lease."""

    build: UUID
    epoch: int

    @property
    def arguments(self) -> tuple[str, str]:
        """The ticket as the scripts take it."""
        return str(self.build), str(self.epoch)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the hash beside the data says.

    Attributes:
        whole: The build has reached its target, and no script broke off.
    """

    build: str
    position: Position
    whole: bool


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """The keys of one version of a read model, all in one hash slot of a cluster.

    >>> keys = RedisKeys("shop", "dashboard", 2)
    >>> keys.of("hash", "cents_by_department")
    '{shop:dashboard:v2}:hash:cents_by_department'
    """

    prefix: str
    name: str
    version: int

    @property
    def tag(self) -> str:
        """What all keys begin with."""
        return f"{{{self.prefix}:{self.name}:v{self.version}}}"

    @property
    def checkpoint(self) -> str:
        """The key of the checkpoint."""
        return f"{self.tag}:checkpoint"

    def of(self, kind: str, name: str) -> str:
        """Return the key of one structure; its kind is part of it, so kinds cannot clash."""
        return f"{self.tag}:{kind}:{name}"


@dataclass(frozen=True, slots=True)
class RedisReadModel:
    """Reads and writes one version of a read model."""

    client: Redis
    keys: RedisKeys

    def checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint, or None if there is none."""
        return read_checkpoint(self.client.hgetall(self.keys.checkpoint))

    def epoch(self) -> int:
        """Return the highest lease that has written here, 0 if none has."""
        epoch = decoded(self.client.hget(self.keys.checkpoint, "epoch") or "0")
        return int(epoch) if _is_number(epoch) else 0

    def adopt(self, ticket: Ticket) -> Position | None:
        """Return how far the data of this build are, and fence earlier leases; None if unusable.

        Raises:
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        answer = decoded(self._script(ADOPT, [self.keys.checkpoint], ticket.arguments))
        if answer == "later":
            raise LaterEpochError
        return Position(int(answer)) if _is_number(answer) else None

    def reset(self, ticket: Ticket, *, target: Position) -> None:
        """Begin this build at the start of the log, without anything of another build.

        A reset that broke off is found by `adopt` and done again. It scans the keys of the whole
        Redis, in small steps: the price of not keeping a list of keys at every write.

        Raises:
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        arguments = (*ticket.arguments, str(target))
        if not self._script(BEGIN_CLEARING, [self.keys.checkpoint], arguments):
            raise LaterEpochError
        failpoint("redis-projection.clearing")
        pattern = f"{_escaped(self.keys.tag)}:*"
        leftovers: list[str] = []
        for key in map(decoded, self.client.scan_iter(match=pattern, count=1_000)):
            if key != self.keys.checkpoint:
                leftovers.append(key)
            if len(leftovers) == _KEYS_PER_CALL:
                self.clear(ticket, leftovers, last=False)
                leftovers = []
        self.clear(ticket, leftovers, last=True)

    def clear(self, ticket: Ticket, leftovers: Sequence[str], *, last: bool) -> None:
        """Remove keys of an earlier build; with ``last``, the build may begin.

        Raises:
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        arguments = (*ticket.arguments, "last" if last else "")
        if not self._script(CLEAR, [self.keys.checkpoint, *leftovers], arguments):
            raise LaterEpochError

    def stored(self, places: Iterable[Place], after: Position) -> dict[Place, str] | None:
        """Return what ``places`` hold at ``after``; None if Redis is not there (any more).

        Args:
            places: Sorted.
            after: Where the data must be; the answer is of one moment.
        """
        groups = [
            (kind, name, list(members))
            for (kind, name), members in groupby(places, key=lambda p: (p.kind, p.name))
        ]
        pipe = self.client.pipeline(transaction=True)
        pipe.hgetall(self.keys.checkpoint)
        for kind, name, members in groups:
            fields = [place.field for place in members]
            if kind == "hash":
                pipe.hmget(self.keys.of(kind, name), fields)
            else:
                pipe.zmscore(self.keys.of(kind, name), fields)
        raw, *answers = pipe.execute()
        checkpoint = read_checkpoint(raw)
        if checkpoint is None or checkpoint.position != after:
            return None
        return {
            place: _value(kind, value)
            for (kind, _, members), values in zip(groups, answers, strict=True)
            for place, value in zip(members, values, strict=True)
            if value is not None
        }

    def structures(self) -> set[tuple[str, str]]:
        """Return kind and name of every structure that there is; scans the whole Redis."""
        pattern = f"{_escaped(self.keys.tag)}:*"
        keys = map(decoded, self.client.scan_iter(match=pattern, count=1_000))
        parts = (key.removeprefix(f"{self.keys.tag}:").split(":", 1) for key in keys)
        return {(part[0], part[1]) for part in parts if len(part) == _PARTS}

    def snapshot(
        self, structures: Collection[tuple[str, str]]
    ) -> tuple[Position | None, dict[Place, str]]:
        """Return all that ``structures`` hold, and as of which position; None if not whole."""
        asked = sorted(structures)
        pipe = self.client.pipeline(transaction=True)
        pipe.hgetall(self.keys.checkpoint)
        for kind, name in asked:
            key = self.keys.of(kind, name)
            if kind == "hash":
                pipe.hgetall(key)
            else:
                pipe.zrange(key, 0, -1, withscores=True)
        raw, *answers = pipe.execute()
        checkpoint = read_checkpoint(raw)
        if checkpoint is None or not checkpoint.whole:
            return None, {}
        return checkpoint.position, {
            Place(kind, name, decoded(field)): _value(kind, value)
            for (kind, name), answer in zip(asked, answers, strict=True)
            for field, value in (answer.items() if kind == "hash" else answer)
        }

    def apply(
        self,
        ticket: Ticket,
        outcome: Mapping[Place, str | None],
        *,
        after: Position,
        position: Position,
    ) -> bool:
        """Carry out a page and move the checkpoint, unless it is not at ``after`` any more."""
        keys = {self.keys.checkpoint: 1}
        arguments = [*ticket.arguments, str(after), str(position)]
        for place, value in outcome.items():
            key = self.keys.of(place.kind, place.name)
            index = str(keys.setdefault(key, len(keys) + 1))
            arguments += _command(place, value, index)
        return bool(self._script(APPLY, list(keys), arguments))

    def _script(self, script: str, keys: list[str], arguments: Iterable[str]) -> Any:  # noqa: ANN401
        return self.client.register_script(script)(keys=keys, args=list(arguments))


@contextmanager
def redis_answers() -> Iterator[None]:
    """Say in our words that Redis did not answer; on a method, that it needs Redis.

    What was under way then may have happened or not: the checkpoint tells.
    """
    try:
        yield
    except (
        RedisConnectionError,
        RedisTimeoutError,
        ReadOnlyError,
        OutOfMemoryError,
    ) as error:
        raise ServerUnavailableError("Redis", str(error)) from error


def read_checkpoint(raw: Mapping[Any, Any]) -> Checkpoint | None:
    """Return the checkpoint that a hash holds, or None if it holds none."""
    fields = {decoded(field): decoded(value) for field, value in raw.items()}
    # Not only ours can write there: what we cannot have written is none.
    if "build" not in fields or not _is_number(fields.get("position", "")):
        return None
    whole = fields.keys().isdisjoint({"target", "clearing", "torn"})
    return Checkpoint(fields["build"], Position(int(fields["position"])), whole)


def decoded(answer: Any) -> str:  # noqa: ANN401 -- bytes or text, as the client is configured
    """Return what Redis says as text."""
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) is not None


def _command(place: Place, value: str | None, index: str) -> tuple[str, str, str, str]:
    match place.kind, value:
        case "hash", None:
            return "HDEL", index, place.field, ""
        case "hash", text:
            return "HSET", index, place.field, str(text)
        case _, None:
            return "ZREM", index, place.field, ""
        case _, score:
            return "ZADD", index, str(score), place.field


def _value(kind: str, answer: Any) -> str:  # noqa: ANN401 -- bytes, text or a score
    return decoded(answer) if kind == "hash" else str(int(answer))


def _escaped(tag: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]^-\\" else c for c in tag)
