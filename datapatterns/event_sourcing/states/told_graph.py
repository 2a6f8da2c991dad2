"""A hash of things that lead to one another, in circles and in sets without an order.

Two graphs have the same one if the same is told of their things and they are linked in the same
way. The order in which things were met does not count: in a set it depends on addresses.

Source: colour refinement, B. Weisfeiler and A. Leman, 1968. It costs two hashes for each thing, and
one in each round for those that are still alike; mostly there are few.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

_ROUNDS_MAX: Final = 1_000
"""Beyond so many links the place of a thing among others that are alike does not matter."""


class Told(NamedTuple):
    """What is told of one thing.

    Attributes:
        text: Its own.
        links: The numbers of the things that it leads to, in an order that matters.
        members: Those of the things that it holds in any order.
    """

    text: str
    links: Sequence[int] = ()
    members: Collection[int] = ()


def graph_digest(things: Sequence[Told]) -> bytes:
    """Return 32 bytes that change when something else is told, or linked, of any of the things.

    Args:
        things: By their numbers; all lead from the first.
    """
    own = [_hashed(thing.text.encode()) for thing in things]
    colours = own.copy()

    def linked(number: int) -> bytes:
        links = [colours[link] for link in things[number].links]
        members = sorted([colours[member] for member in things[number].members])
        ordered = len(links).to_bytes(8, "big")  # or a link and a member would be the same
        return _hashed(b"".join([own[number], ordered, *links, *members]))

    alike = _more_than_one(own, range(len(things)))
    for _ in range(_ROUNDS_MAX):
        # What has a colour of its own keeps it: no round makes two things alike.
        refined = {number: linked(number) for number in alike}
        kinds = len({colours[number] for number in alike})
        for number, colour in refined.items():
            colours[number] = colour
        if len(set(refined.values())) == kinds:  # no round after this one tells more apart
            break
        alike = _more_than_one(colours, alike)
    ends = [linked(number) for number in range(len(things))]
    return _hashed(ends[0] + b"".join(sorted(ends)))


def _more_than_one(colours: Sequence[bytes], among: Collection[int]) -> Collection[int]:
    """Return which numbers have a colour that another one has."""
    counted = Counter([colours[number] for number in among])
    return [number for number in among if counted[colours[number]] > 1]


def _hashed(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
