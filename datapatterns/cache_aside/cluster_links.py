"""Connections to all nodes of a Redis Cluster; what `Links` is for one server.

Each part of a command goes to the node that has its slot, and where that node says it is now.
Hits come from the cluster as a whole or from none of it: its identity is that of all nodes that
have slots, so when one of them is another, or another run of it, everything is forgotten at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, TypeAlias

from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from datapatterns.breaker import Breaker
from datapatterns.cache_aside.link import Refused
from datapatterns.cache_aside.links import Links, Place
from datapatterns.cache_aside.lua_scripts import Command
from datapatterns.cache_aside.redis_sources import ClusterSeeds, source_of
from datapatterns.cache_aside.slots import (
    Address,
    Part,
    SlotMap,
    joined,
    one_by_one,
    parts_of,
    slot_of,
)
from datapatterns.cache_aside.steps import CacheSilence
from datapatterns.errors import SettingsError

REDIRECTIONS_MAX: Final = 8
_NO_CLUSTER: Final = "it is no cluster; write redis://"
_ASKING: Final = ("ASKING",)
_WHO_HAS_WHAT: Final = ("CLUSTER", "SLOTS")


@dataclass(frozen=True, slots=True)
class Members:
    """The nodes that have slots.

    Attributes:
        identity: Which runs of which servers they are, all together.
        by_address: Which run of which server each is.
    """

    identity: str
    by_address: Mapping[Address, str]

    @classmethod
    def of(cls, by_address: Mapping[Address, str]) -> "Members":
        """Return these nodes; wherever they listen, their identity is the same."""
        listed = ",".join(sorted(by_address.values()))
        return cls(f"cluster:{blake2b(listed.encode(), digest_size=16).hexdigest()}", by_address)

    def at(self, address: Address, identity: str) -> str:
        """Return who has to answer at ``address``.

        Raises:
            CacheSilence: It is not one of the nodes that ``identity`` stands for.
        """
        if identity != self.identity or address not in self.by_address:
            raise CacheSilence("another node answers")
        return self.by_address[address]


@dataclass(frozen=True, slots=True)
class Errand:
    """A part of a command on its way.

    Attributes:
        part: What is asked.
        address: Of whom.
        is_asking: Whether the key is there though the slot is not, or not yet.
    """

    part: Part
    address: Address
    is_asking: bool = False

    @property
    def commands(self) -> list[Command]:
        """What is sent."""
        return [_ASKING, self.part.command] if self.is_asking else [self.part.command]

    def reply_in(self, replies: Iterator[object]) -> object:
        """Return the next of ``replies`` that is one to this part."""
        if self.is_asking:
            next(replies)
        return next(replies)


def by_address(errands: Mapping[int, Errand]) -> dict[Address, list[int]]:
    """Return the numbers of the errands to each node."""
    grouped: dict[Address, list[int]] = {}
    for number, errand in errands.items():
        grouped.setdefault(errand.address, []).append(number)
    return grouped


class ClusterLinks:
    """Hands out what `Links` does, for a cluster.

    Args:
        seeds: Some of its nodes.
        timeout_seconds: How long to wait for a connection or an answer.
        new_breaker: Makes what decides whether to ask a node at all.
        on_silence: Called whenever a node did not answer, or another one did.

    Attributes:
        database: A cluster has but one.
        tells_losses: Whether it can be known what Redis has lost: not of all nodes at once.
        seeds: As given.
        members: The nodes that answered when they were last looked at.
        known: Which node has which slot, as far as is known.
    """

    database = 0
    tells_losses = False

    def __init__(
        self,
        seeds: ClusterSeeds,
        *,
        timeout_seconds: float,
        new_breaker: Callable[[], Breaker],
        on_silence: Callable[[], None],
    ) -> None:
        self.seeds = seeds
        self.members = Members("", {})
        self._timeout_seconds = timeout_seconds
        self._new_breaker = new_breaker
        self._on_silence = on_silence
        self._nodes: dict[Address, Links] = {}
        self.known: SlotMap | None = None
        self._looks = 0

    def fetch(self, command: Command, identity: str) -> object:
        """Return the reply to a command that reads, by the shortest way there is.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        members, known = self.members, self.known
        if command[0] == "GET" and known is not None and members.identity == identity:
            address = known.owners[slot_of(str(command[1]))]
            if (server := members.by_address.get(address)) is not None:
                try:
                    return self.node(address).fetch(command, server)
                except Refused:
                    pass  # it may say where the key is now
        return self.call(command, identity=identity)

    def call(self, command: Command, *, identity: str | None = None) -> object:
        """Return the reply to one command, as `Links.call` does.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        [reply] = self.call_all([command], identity=identity)
        return reply

    def call_all(self, commands: Sequence[Command], *, identity: str | None = None) -> list[object]:
        """Return the replies to ``commands``, in one round trip to each node concerned.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        parts = [parts_of(command) for command in commands]
        owners = self.slots().owners
        found = self._replies(
            [Errand(part, owners[part.slot]) for some in parts for part in some], identity
        )
        replies = iter(found)
        return [
            joined(command, [next(replies) for _ in some])
            for command, some in zip(commands, parts, strict=True)
        ]

    def current_identity(self) -> str:
        """Return which runs of which servers have the slots now.

        Raises:
            CacheSilence: One did not answer, or some slots have no node.
            SettingsError: It is no cluster.
        """
        known = self._look()
        self.members = Members.of({at: self.node(at).current_identity() for at in known.nodes})
        return self.members.identity

    def places(self, identity: str) -> list[Place]:
        """Return the nodes that ``identity`` stands for, in an order that is everybody's.

        Raises:
            CacheSilence: It stands for others than are there.
        """
        members = self.members
        tags = self.slots().tags()
        if identity != members.identity or tags.keys() != members.by_address.keys():
            raise CacheSilence("other nodes have the slots")
        return sorted(Place(server, tags[at], at) for at, server in members.by_address.items())

    def call_at(self, place: Place, commands: Sequence[Command]) -> list[object]:
        """Return the replies of one of these nodes.

        Raises:
            CacheSilence: There was no answer, an error, or it is another server.
        """
        assert place.address is not None
        return self.node(place.address).call_all(commands, identity=place.identity)

    def close(self) -> None:
        """Close the links that nobody uses."""
        for node in [*self._nodes.values()]:
            node.close()

    def slots(self) -> SlotMap:
        """Return which node has which slot, as far as is known.

        Raises:
            CacheSilence: No node tells.
        """
        return self.known or self._look()

    def redirected(self, errand: Errand, error: ResponseError) -> Errand:
        """Return the errand to whom a node has named, and take note of a slot that has moved.

        Raises:
            Refused: It has named nobody.
        """
        if not isinstance(error, AskError):
            raise Refused(error) from error
        address = self.seeds.remap((error.host or errand.address[0], error.port))
        is_asking = not isinstance(error, MovedError)
        if self.known is not None and not is_asking:
            self.known.owners[errand.part.slot] = address
        return Errand(errand.part, address, is_asking)

    def node(self, address: Address) -> Links:
        """Return the links to one node; each node has a breaker of its own."""
        node = self._nodes.get(address)
        if node is None:
            made = Links(
                self.seeds.pool_of(address),
                timeout_seconds=self._timeout_seconds,
                breaker=self._new_breaker(),
                on_silence=self._on_silence,
                in_cluster=True,
            )
            # Of two threads one loses its own, which has no connection yet.
            node = self._nodes.setdefault(address, made)
        return node

    def _look(self) -> SlotMap:
        silence = CacheSilence("no node of the cluster answers")
        asked = [*dict.fromkeys([*(self.known.nodes if self.known else ()), *self.seeds.addresses])]
        # Another first each time: one that is cut off from the others may tell what was once.
        self._looks += 1
        first = self._looks % len(asked)
        for address in asked[first:] + asked[:first]:
            try:
                reply = self.node(address).call(_WHO_HAS_WHAT)
                self.known = SlotMap.of(reply, address, self.seeds.remap)
            except Refused as refused:
                if "cluster support disabled" in str(refused):
                    raise SettingsError("redis", _NO_CLUSTER) from None
                silence = refused
            except CacheSilence as error:
                silence = error
            else:
                return self.known
        raise silence

    def _replies(self, errands: Sequence[Errand], identity: str | None) -> list[object]:
        replies: dict[int, object] = {}
        left = dict(enumerate(errands))
        for _ in range(REDIRECTIONS_MAX):
            told = self._told(left, identity)
            for number, reply in told.items():
                if isinstance(reply, TryAgainError):
                    replies[number] = self._one_by_one(left.pop(number), reply, identity)
                elif isinstance(reply, ResponseError):
                    left[number] = self.redirected(left[number], reply)
                else:
                    replies[number] = reply
                    del left[number]
            if not left:
                return [replies[number] for number in range(len(errands))]
        raise CacheSilence("the nodes send from one to the other")

    def _one_by_one(self, errand: Errand, error: TryAgainError, identity: str | None) -> object:
        if not (commands := one_by_one(errand.part.command)):
            raise Refused(error) from error
        for command in commands:
            self.call(command, identity=identity)
        return 1

    def _told(self, errands: Mapping[int, Errand], identity: str | None) -> dict[int, object]:
        """Return what is replied, after one round trip to all nodes at once."""
        replies: dict[int, object] = {}
        exchanges = []
        try:
            for address, numbers in by_address(errands).items():
                commands = [command for number in numbers for command in errands[number].commands]
                server = None if identity is None else self.members.at(address, identity)
                exchanges.append((self.node(address).begin(commands, identity=server), numbers))
            while exchanges:
                exchange, numbers = exchanges.pop()
                found = iter(exchange.replies())
                for number in numbers:
                    replies[number] = errands[number].reply_in(found)
        finally:
            for exchange, _ in exchanges:
                exchange.give_up()
        return replies


AnyLinks: TypeAlias = Links | ClusterLinks


def links_to(
    redis: object,
    *,
    timeout_seconds: float,
    new_breaker: Callable[[], Breaker],
    on_silence: Callable[[], None],
) -> AnyLinks:
    """Return links to what ``redis`` is: a URL, or a client whose settings are used.

    Raises:
        SettingsError: It cannot be used.
    """
    source = source_of(redis, timeout_seconds=timeout_seconds)
    if isinstance(source, ClusterSeeds):
        return ClusterLinks(
            source, timeout_seconds=timeout_seconds, new_breaker=new_breaker, on_silence=on_silence
        )
    return Links(
        source, timeout_seconds=timeout_seconds, breaker=new_breaker(), on_silence=on_silence
    )
