"""Which slot of a Redis Cluster each part of a command belongs to, and which node has it.

A cluster takes a command only if all its keys are in one slot. What is said about several entries
at once falls into parts that have nothing to do with each other.
"""

from binascii import crc_hqx
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Final, NamedTuple, TypeAlias

from datapatterns.cache_aside.lua_scripts import (
    ACQUIRE,
    FENCE,
    FILL,
    INVALIDATE,
    INVALIDATE_TAGS,
    RELEASE,
    STAMP,
    UNFENCE,
    Command,
)
from datapatterns.cache_aside.steps import CacheSilence

SLOTS: Final = 16_384
_ARGUMENTS = 3  # of a script, after its hash and the number of keys

Address: TypeAlias = tuple[str, int]
Remap: TypeAlias = Callable[[Address], Address]


class Part(NamedTuple):
    """What one node is asked.

    Attributes:
        command: The command.
        slot: Where its keys are.
    """

    command: Command
    slot: int


class _Shape(NamedTuple):
    """How a script's keys and arguments belong together.

    Attributes:
        keys: How many keys each entry has.
        shared: How many arguments are for all entries; None if all are.
        each: How many belong to each entry.
        counts: Whether the reply is a number, which adds up; else it is a list.
    """

    keys: int
    shared: int | None
    each: int = 0
    counts: bool = False


SHAPES: Final[Mapping[str, _Shape]] = {
    ACQUIRE.sha: _Shape(keys=4, shared=3, each=1),
    FILL.sha: _Shape(keys=3, shared=1, each=2),
    RELEASE.sha: _Shape(keys=1, shared=1, counts=True),
    STAMP.sha: _Shape(keys=3, shared=2, each=1),
    INVALIDATE.sha: _Shape(keys=4, shared=None, counts=True),
    INVALIDATE_TAGS.sha: _Shape(keys=3, shared=None, counts=True),
    FENCE.sha: _Shape(keys=4, shared=None, counts=True),
    UNFENCE.sha: _Shape(keys=1, shared=None, counts=True),
}

# KEYS writers of one entry or tag. ARGV life of a trace in ms, transaction id.
_TRACE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - ARGV[1]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""


def slot_of(key: str) -> int:
    """Return the slot of ``key``, by what stands in its first braces if anything does.

    >>> slot_of("shop:value:{product:i5}") == slot_of("shop:lease:{product:i5}")
    True
    """
    begin = key.find("{")
    end = key.find("}", begin + 1)
    named = key[begin + 1 : end] if begin >= 0 and end > begin + 1 else key
    return crc_hqx(named.encode(), 0) % SLOTS


def parts_of(command: Command) -> list[Part]:
    """Return the parts of ``command``, each of which is in one slot; see `joined`."""
    name, *rest = command
    if name == "MGET":
        return [Part(("GET", key), slot_of(str(key))) for key in rest]
    if name != "EVALSHA":
        return [Part(command, slot_of(str(rest[0])))]
    shape, keys, arguments = _taken_apart(command)
    shared = len(arguments) if shape.shared is None else shape.shared
    parts = []
    for number, start in enumerate(range(0, len(keys), shape.keys)):
        own_keys = keys[start : start + shape.keys]
        begin = shared + number * shape.each
        own = (*arguments[:shared], *arguments[begin : begin + shape.each])
        part = ("EVALSHA", rest[0], len(own_keys), *own_keys, *own)
        parts.append(Part(part, slot_of(str(own_keys[0]))))
    return parts


def joined(command: Command, replies: Sequence[object]) -> object:
    """Return the reply to ``command``, by those to its parts."""
    if command[0] == "MGET":
        return list(replies)
    if command[0] != "EVALSHA":
        [reply] = replies
        return reply
    shape, _, _ = _taken_apart(command)
    kind = int if shape.counts else list
    if not all(isinstance(reply, kind) for reply in replies):
        raise CacheSilence("an unexpected reply to a script")
    return sum(replies) if shape.counts else [*chain(*replies)]  # type: ignore[arg-type] # checked


def one_by_one(part: Command) -> list[Command]:
    """Return commands with one key each that do what an invalidation does, in this order.

    While a slot moves, its keys are in two places, and nothing can be said about two of them at
    once. The lease goes before the value: nobody may store what was loaded before. The fence
    falls when all is done.
    """
    if part[0] != "EVALSHA" or part[1] not in {INVALIDATE.sha, INVALIDATE_TAGS.sha}:
        return []
    _, keys, arguments = _taken_apart(part)
    by_role = {str(key).partition(":{")[0].rpartition(":")[2]: key for key in keys}
    life_ms, xid, falls = arguments
    commands: list[Command] = [("EVAL", _TRACE, 1, by_role["writers"], life_ms, xid)]
    commands += [
        ("UNLINK", by_role[role]) for role in ("lease", "stamp", "value") if role in by_role
    ]
    return [*commands, ("ZREM", by_role["fences"], xid)] if falls else commands


def _taken_apart(command: Command) -> tuple[_Shape, Command, Command]:
    end = _ARGUMENTS + int(command[2])
    return SHAPES[str(command[1])], command[_ARGUMENTS:end], command[end:]


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which node has which slot, as far as is known.

    Attributes:
        owners: By slot.
    """

    owners: list[Address]

    @classmethod
    def of(cls, reply: object, asked: Address, remap: Remap) -> "SlotMap":
        """Return what the reply to ``CLUSTER SLOTS`` says.

        Args:
            reply: From ``asked``, whose host stands for one that is not named.
            asked: Who has answered.
            remap: Where a node is for us that is elsewhere for the cluster.

        Raises:
            CacheSilence: Some slots have no node, or it is no such reply.
        """
        owners: list[Address | None] = [None] * SLOTS
        for each in reply if isinstance(reply, list) else ():
            match each:
                case [int(first), int(last), [bytes(host), int(port), *_], *_]:
                    named = host.decode(errors="replace") or asked[0]
                case [int(first), int(last), [None, int(port), *_], *_]:
                    named = asked[0]
                case _:
                    raise CacheSilence("an unexpected reply to CLUSTER SLOTS")
            owners[first : last + 1] = [remap((named, port))] * (last + 1 - first)
        known = [owner for owner in owners if owner is not None]
        if len(known) != SLOTS:
            raise CacheSilence("some slots of the cluster have no node")
        return cls(known)

    @property
    def nodes(self) -> list[Address]:
        """Those that have slots."""
        return sorted(set(self.owners))

    def tags(self) -> dict[Address, str]:
        """Return for each node what a key can end in to be there."""
        found: dict[Address, str] = {}
        missing = set(self.owners)
        for number in count():
            tag = f":{{{number}}}"
            owner = self.owners[slot_of(tag)]
            if owner in missing:
                found[owner] = tag
                missing.discard(owner)
            if not missing:
                break
        return found
