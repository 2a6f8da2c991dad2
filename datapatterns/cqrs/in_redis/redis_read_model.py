"""A read model in Redis and its checkpoint, which move together or not at all."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Final, Literal, TypeAlias

from redis.exceptions import ResponseError

from datapatterns.cqrs.in_redis.redis_changes import Outcome
from datapatterns.cqrs.in_redis.redis_checkpoint import (
    FIELDS,
    Checkpoint,
    DamagedError,
    LaterEpochError,
    Ticket,
    decoded,
    is_number,
    is_of_another_type,
    read_checkpoint,
)
from datapatterns.cqrs.in_redis.redis_connection import AnyRedis, keys_like
from datapatterns.cqrs.in_redis.redis_keys import (
    KINDS,
    Place,
    RedisKeys,
    Structure,
    size_field,
    structure_of,
)
from datapatterns.cqrs.in_redis.redis_places import command_for, content_of, stored_text
from datapatterns.cqrs.in_redis.redis_questions import ask_size
from datapatterns.cqrs.in_redis.redis_scripts import ADOPT, APPLY, BEGIN_CLEARING, CLEAR
from datapatterns.cqrs.running.log_witness import LogWitness
from datapatterns.event_sourcing.events import Position
from datapatterns.failpoints import failpoint

Then: TypeAlias = Literal["", "build", "forget"]

_KEYS_PER_CALL: Final = 500
_DAMAGED: Final = -1

COUNTED_STRUCTURES_MAX: Final = 100
"""How many structures are looked at when a runner begins: all, or as many at random."""

TOMBSTONE_SECONDS: Final = 2 * 86_400
"""For how long a version that was removed refuses its last runners; no lease is kept longer."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was in Redis at one moment.

    Attributes:
        witness: By which events the log can be recognised; None if it cannot.
    """

    places: dict[Place, str]
    witness: LogWitness | None


@dataclass(frozen=True, slots=True)
class RedisReadModel:
    """Reads and writes one version of a read model."""

    client: AnyRedis
    keys: RedisKeys

    def checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint, or None if there is none."""
        return read_checkpoint(self.client.hmget(self.keys.checkpoint, FIELDS))

    def epoch(self) -> int:
        """Return the highest lease that has written here, 0 if none has."""
        epoch = decoded(self.client.hget(self.keys.checkpoint, "epoch") or "0")
        return int(epoch) if is_number(epoch) else 0

    def adopt(self, ticket: Ticket) -> tuple[Position, LogWitness] | None:
        """Return how far the data of this build are, and fence earlier leases; None if unusable.

        Raises:
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        answer = self._script(ADOPT, [self.keys.checkpoint], ticket.arguments)
        if not isinstance(answer, list):
            if decoded(answer) == "later":
                raise LaterEpochError
            return None
        position, text = map(decoded, answer)
        witness = LogWitness.parsed(text)
        if witness is None or not is_number(position):
            return None
        return Position(int(position)), witness

    def is_complete(self) -> bool:
        """Return whether the structures are there with the sizes that they had.

        All of them, up to a bound; beyond it, some at random.
        """
        try:
            chosen = self.client.hrandfield(self.keys.sizes, COUNTED_STRUCTURES_MAX) or []
        except ResponseError as error:
            if is_of_another_type(error):
                return False
            raise
        some = [structure_of(decoded(field)) for field in chosen]
        pipe = self.client.pipeline(transaction=True)
        pipe.hget(self.keys.checkpoint, "structures")
        pipe.hlen(self.keys.sizes)
        self._ask_sizes(pipe, some)
        answers = pipe.execute(raise_on_error=False)
        counted, known, *sizes = answers
        return decoded(counted or "0") == str(known) and _sizes_agree(some, sizes)

    def reset(self, ticket: Ticket, *, target: Position) -> None:
        """Begin this build at the start of the log, without anything of another build.

        A reset that broke off is found by `adopt` and done again. It scans the keys of the whole
        Redis, in small steps: a list of keys could be lost as they can.

        Raises:
            DamagedError: Redis has lost everything meanwhile.
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        self._clear_all(ticket, target=target, then="build")

    def remove(self, ticket: Ticket) -> None:
        """Remove this version, in small steps, for good.

        What refuses its last runners stays behind for two days.

        Raises:
            DamagedError: Redis has lost everything meanwhile.
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        self._clear_all(ticket, target=Position(0), then="forget")

    def clear(self, ticket: Ticket, leftovers: Sequence[str], *, then: Then = "") -> None:
        """Remove keys of an earlier build.

        Args:
            ticket: On whose behalf.
            leftovers: The keys.
            then: With ``build`` it may begin, with ``forget`` none will.

        Raises:
            DamagedError: Redis has lost that it was about to be cleared.
            LaterEpochError: The caller's lease is not the latest that wrote here.
        """
        arguments = (*ticket.arguments, then, str(TOMBSTONE_SECONDS))
        answer = self._script(CLEAR, [self.keys.checkpoint, *leftovers], arguments)
        if answer == _DAMAGED:
            raise DamagedError
        if not answer:
            raise LaterEpochError

    def stored(self, places: Iterable[Place], after: Position) -> Found | None:
        """Return what ``places`` hold at ``after``; None if Redis is not there (any more).

        Args:
            places: Sorted.
            after: Where the data must be; the answer is of one moment.

        Raises:
            DamagedError: Something has gone of the structures that were asked for.
        """
        groups = [
            (structure, list(members))
            for structure, members in groupby(places, key=lambda place: place.structure)
        ]
        asked = [structure for structure, _ in groups]
        pipe = self.client.pipeline(transaction=True)
        pipe.hmget(self.keys.checkpoint, FIELDS)
        pipe.hget(self.keys.checkpoint, "witness")
        self._ask_sizes(pipe, asked)
        for structure, members in groups:
            fields = [place.field for place in members]
            if structure.kind == "zset":
                pipe.zmscore(self.keys.of(*structure), fields)
            else:
                pipe.hmget(self.keys.of(*structure), fields)
        answers = iter(pipe.execute(raise_on_error=False))
        raw = next(answers)
        checkpoint = None if is_of_another_type(raw) else read_checkpoint(raw)
        if checkpoint is None or checkpoint.position != after:
            return None
        witness = LogWitness.parsed(decoded(next(answers) or ""))
        if not _sizes_agree(asked, list(islice(answers, 1 + len(asked)))):
            raise DamagedError
        return Found(
            {
                place: stored_text(structure.kind, value)
                for (structure, members), values in zip(groups, answers, strict=True)
                for place, value in zip(members, _refuse_error(values), strict=True)
                if value is not None
            },
            witness,
        )

    def structures(self) -> set[Structure]:
        """Return every structure that there is; scans the whole Redis."""
        keys = keys_like(self.client, self.keys.checkpoint, self.keys.pattern)
        found = map(self.keys.structure, keys)
        return {structure for structure in found if structure is not None}

    def snapshot(
        self, structures: Collection[Structure]
    ) -> tuple[Position | None, dict[Structure, dict[str, str]]]:
        """Return all that ``structures`` hold, and as of which position; None if not whole.

        A structure that is none of ours holds nothing that could be read: it comes as a type.
        """
        asked = sorted(structures)
        pipe = self.client.pipeline(transaction=True)
        pipe.hmget(self.keys.checkpoint, FIELDS)
        for kind, name in asked:
            key = self.keys.of(kind, name)
            if kind == "zset":
                pipe.zrange(key, 0, -1, withscores=True)
            elif kind in KINDS:
                pipe.hgetall(key)
            else:
                pipe.type(key)
        raw, *answers = pipe.execute(raise_on_error=False)
        checkpoint = None if is_of_another_type(raw) else read_checkpoint(raw)
        if checkpoint is None or not checkpoint.whole:
            return None, {}
        found = zip(asked, answers, strict=True)
        return checkpoint.position, {of: content_of(of, answer) for of, answer in found}

    def apply(
        self,
        ticket: Ticket,
        outcome: Outcome,
        *,
        after: Position,
        position: Position,
        witness: LogWitness = LogWitness(),  # noqa: B008 -- it is frozen
    ) -> bool:
        """Carry out a page and move the checkpoint, unless it is not at ``after`` any more.

        Raises:
            DamagedError: Somebody else has changed a structure that the page is to change. Now
                readers are told, and `adopt` finds the read model unusable.
        """
        touched = dict.fromkeys(outcome.dropped)
        touched |= dict.fromkeys(place.structure for place in outcome.places)
        index = {structure: str(number) for number, structure in enumerate(touched, start=3)}
        arguments = [*ticket.arguments, str(after), str(position), witness.text]
        arguments += map(size_field, touched)
        for structure in outcome.dropped:
            arguments += ("UNLINK", index[structure], "", "")
        for place, value in outcome.places.items():
            arguments += command_for(place, value, index[place.structure])
        keys = [self.keys.checkpoint, self.keys.sizes]
        keys += [self.keys.of(*structure) for structure in touched]
        answer = self._script(APPLY, keys, arguments)
        if answer == _DAMAGED:
            raise DamagedError
        return bool(answer)

    def _clear_all(self, ticket: Ticket, *, target: Position, then: Then) -> None:
        arguments = (*ticket.arguments, str(target))
        if not self._script(BEGIN_CLEARING, [self.keys.checkpoint], arguments):
            raise LaterEpochError
        failpoint("redis-projection.clearing")
        for leftovers in _batches(self._leftovers()):
            self.clear(ticket, leftovers)
        self.clear(ticket, [], then=then)

    def _leftovers(self) -> Iterator[str]:
        for key in keys_like(self.client, self.keys.checkpoint, self.keys.pattern):
            if key != self.keys.checkpoint:
                yield key

    def _ask_sizes(self, pipe: Any, structures: Sequence[Structure]) -> None:  # noqa: ANN401 -- of either client
        fields = [size_field(structure) for structure in structures]
        pipe.hmget(self.keys.sizes, fields or [""])
        for structure in structures:
            ask_size(pipe, self.keys, structure)

    def _script(self, script: str, keys: list[str], arguments: Iterable[str]) -> Any:  # noqa: ANN401
        return self.client.register_script(script)(keys=keys, args=list(arguments))


def _sizes_agree(structures: Sequence[Structure], answers: Sequence[Any]) -> bool:
    if any(map(is_of_another_type, answers)):
        return False
    recorded, *sizes = answers
    known = [decoded(size or "0") for size in recorded][: len(structures)]
    return known == [str(size) for size in sizes]


def _refuse_error(answer: Any) -> Any:  # noqa: ANN401 -- what was asked for
    if isinstance(answer, Exception):
        raise answer
    return answer


def _batches(keys: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(keys, _KEYS_PER_CALL)):
        yield batch
