"""What a session has written, as a place in the log of each shard's server."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from datapatterns.errors import TokenError

TOKEN_CHARS_MAX: Final = 8_000

_LSN = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}", re.ASCII)
_SHARD = re.compile(r"([a-z0-9_]{1,30}):([0-9A-F]{1,8}/[0-9A-F]{1,8})", re.ASCII)
_EPOCH = re.compile(r"([0-9]{1,9}):([0-9]{1,18})", re.ASCII)

NEVER: Final = "FFFFFFFF/FFFFFFFF"
"""A place that no replica ever reaches: only the primary knows."""


@dataclass(frozen=True, slots=True)
class ShardToken:
    """A place in the log of each shard that a replica has to reach before it is read.

    As text it fits a header, a cookie and a form. Who makes one up only waits.

    >>> token = ShardToken({"s0": "0/16B3748"}, {1: 4})
    >>> str(token)
    's0:0/16B3748;1:4'
    >>> ShardToken.parse(str(token)) == token
    True

    Attributes:
        places: By shard, as PostgreSQL writes them.
        epochs: Of the map of each group, by its number: rows may have moved since.

    Raises:
        ValueError: One is no such place.
    """

    places: Mapping[str, str] = field(default_factory=dict)
    epochs: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in self.places.values():
            if not _LSN.fullmatch(place):
                raise ValueError(f"{place!r} is no place in a log")

    @classmethod
    def parse(cls, text: str) -> "ShardToken":
        """Return the token that ``text`` is.

        Raises:
            TokenError: It is none.
        """
        if len(text) > TOKEN_CHARS_MAX:
            raise TokenError(f"it has more than {TOKEN_CHARS_MAX} characters")
        shards, _, groups = text.partition(";")
        places = [_SHARD.fullmatch(part) for part in shards.split(",")] if shards else []
        epochs = [_EPOCH.fullmatch(part) for part in groups.split(",")] if groups else []
        if None in (*places, *epochs):
            raise TokenError("it is not shards with places, a semicolon, and groups with epochs")
        return cls(
            {found[1]: found[2] for found in places if found},
            {int(found[1]): int(found[2]) for found in epochs if found},
        )

    def with_all_of(self, other: "ShardToken") -> "ShardToken":
        """Return the token that shows the writes of both."""
        places = {
            shard: max(self.places.get(shard, "0/0"), other.places.get(shard, "0/0"), key=number_of)
            for shard in {**self.places, **other.places}
        }
        epochs = {
            group: max(self.epochs.get(group, 0), other.epochs.get(group, 0))
            for group in {**self.epochs, **other.epochs}
        }
        return ShardToken(places, epochs)

    def __str__(self) -> str:
        shards = ",".join(f"{shard}:{place}" for shard, place in sorted(self.places.items()))
        groups = ",".join(f"{group}:{epoch}" for group, epoch in sorted(self.epochs.items()))
        return f"{shards};{groups}"


def number_of(place: str) -> int:
    """Return a place as what it is compared by.

    >>> number_of("1/0") > number_of("0/FFFFFFFF")
    True
    """
    high, low = place.split("/")
    return (int(high, 16) << 32) + int(low, 16)
