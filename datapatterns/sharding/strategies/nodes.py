"""Consistent hashing straight to a node: for caches and clients, which own no data.

Rows are placed in buckets instead: who owns a bucket is written down, so it can move while its
rows are written to. Here a node that comes or goes changes the answer at once.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, md5
from math import log
from uuid import UUID

from datapatterns.sharding.strategies.postgres_hash import partition_hash_of_bytes
from datapatterns.sharding.strategies.strategy import KeyPart

_BITS_64 = (1 << 64) - 1
_JUMP_MULTIPLIER = 2862933555777941757


@dataclass(frozen=True, slots=True)
class Jump:
    """Numbers the nodes; takes no memory, and only the last one can go.

    Source: Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm" (2014).

    >>> Jump(57).node(42)
    43

    Attributes:
        nodes: How many there are; they are numbered from 0.
    """

    nodes: int

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError("there is no node")

    def node(self, key: KeyPart) -> int:
        """Return the number of the node that is asked for ``key``."""
        state = (
            key if isinstance(key, int) else partition_hash_of_bytes(_bytes_of(key))
        ) & _BITS_64
        found, jumped = -1, 0
        while jumped < self.nodes:
            found = jumped
            state = (state * _JUMP_MULTIPLIER + 1) & _BITS_64
            jumped = int((found + 1) * ((1 << 31) / ((state >> 33) + 1)))
        return found


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Asks every node how much it wants a key; any node can go, and only its keys move.

    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (1998);
    weights as in Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005). Costs a
    hash for each node.

    Attributes:
        nodes: Their names; the order does not matter.
        weights: How large a share each takes, in the order of the nodes; by default the same.
    """

    nodes: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __init__(self, nodes: Sequence[str], weights: Sequence[float] = ()) -> None:
        object.__setattr__(self, "nodes", _checked_nodes(nodes))
        object.__setattr__(self, "weights", tuple(weights) or (1.0,) * len(nodes))
        if len(self.weights) != len(self.nodes) or min(self.weights) <= 0:
            raise ValueError("each node has one weight, above 0")

    def node(self, key: KeyPart) -> str:
        """Return the name of the node that is asked for ``key``."""
        wanted = _bytes_of(key)

        def score(place: int) -> tuple[float, str]:
            name = self.nodes[place]
            drawn = blake2b(wanted, digest_size=8, key=name.encode()[:64]).digest()
            # Within (0, 1), so that the logarithm exists and is not 0.
            uniform = (int.from_bytes(drawn, "big") + 0.5) / 2**64
            return self.weights[place] / -log(min(uniform, 1 - 2**-53)), name

        return self.nodes[max(range(len(self.nodes)), key=score)]


@dataclass(frozen=True, slots=True)
class Ketama:
    """Puts each node on a ring at many points, as memcached's clients do.

    The points are those of libketama with equal weights: forty times four for each node.

    Attributes:
        nodes: Their names, such as ``10.0.0.1:11211``; the order does not matter.
    """

    nodes: tuple[str, ...]
    _points: tuple[int, ...] = field(repr=False, compare=False, default=())
    _owners: tuple[str, ...] = field(repr=False, compare=False, default=())

    def __init__(self, nodes: Sequence[str]) -> None:
        object.__setattr__(self, "nodes", _checked_nodes(nodes))
        ring = sorted((point, node) for node in self.nodes for point in _points_of(node))
        object.__setattr__(self, "_points", tuple(point for point, _ in ring))
        object.__setattr__(self, "_owners", tuple(node for _, node in ring))

    def node(self, key: KeyPart) -> str:
        """Return the name of the node that is asked for ``key``."""
        digest = md5(str(key).encode(), usedforsecurity=False).digest()
        place = bisect_left(self._points, int.from_bytes(digest[:4], "little"))
        return self._owners[place % len(self._owners)]


def _points_of(node: str) -> list[int]:
    points = []
    for number in range(40):
        digest = md5(f"{node}-{number}".encode(), usedforsecurity=False).digest()
        points += [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 16, 4)]
    return points


def _checked_nodes(nodes: Sequence[str]) -> tuple[str, ...]:
    if not nodes or len({*nodes}) != len(nodes) or isinstance(nodes, str):
        raise ValueError("name each node once, and at least one")
    return tuple(nodes)


def _bytes_of(key: KeyPart) -> bytes:
    return key.bytes if isinstance(key, UUID) else str(key).encode()
