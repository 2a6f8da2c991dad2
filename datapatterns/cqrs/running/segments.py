"""Parts of a read model that different workers move on: keys by their hash.

Shard ``s`` with mask ``m`` owns the keys whose hash ends in ``s`` under ``m``. It splits into ``s``
and ``s + m + 1``, both with mask ``2 m + 1``; two that were split merge again.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import sha256
from types import NoneType, UnionType
from typing import Any, Final
from uuid import UUID

from datapatterns.errors import SegmentKeyError

HASH_BITS: Final = 16
"""How much of the hash there is, so how often a read model can be split."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Which keys are meant: those whose hash ends in ``shard`` under ``mask``.

    >>> Segment(0, 0).owns("any key")
    True
    >>> [shard for shard in range(4) if Segment(shard, 3).owns("milk")]
    [1]
    """

    shard: int
    mask: int

    def owns(self, key: Hashable) -> bool:
        """Return whether ``key`` is one of them.

        Raises:
            SegmentKeyError: Keys of this kind do not look the same in every process.
        """
        return self.mask == 0 or segment_hash(key) & self.mask == self.shard

    def halves(self) -> "tuple[Segment, Segment]":
        """Return the two segments that this one splits into."""
        mask = 2 * self.mask + 1
        return Segment(self.shard, mask), Segment(self.shard + self.mask + 1, mask)


def make_whole(segments: Iterable[Segment]) -> bool:
    """Return whether ``segments``, of which no two overlap, own all keys.

    >>> make_whole([Segment(0, 1), Segment(1, 3), Segment(3, 3)])
    True
    """
    return sum(Fraction(1, segment.mask + 1) for segment in segments) == 1


WHOLE: Final = Segment(0, 0)
"""All keys."""


def segment_hash(key: Hashable) -> int:
    """Return the hash by which segments are told, 0 to 65,535; the same in every process.

    Keys that are equal in Python have one hash, for they mean one row.

    Raises:
        SegmentKeyError: Keys of this kind do not look the same in every process.
    """
    return int.from_bytes(key_digest(key)[: HASH_BITS // 8], "big")


def key_digest(key: Hashable) -> bytes:
    """Return SHA-256 of a key, which says nothing about it but is the same in every process.

    Raises:
        SegmentKeyError: Keys of this kind do not look the same in every process.
    """
    return sha256(_canonical(key).encode(errors="surrogatepass")).digest()


def can_be_told(kind: type) -> bool:
    """Return whether keys of this class look the same in every process."""
    return any(issubclass(kind, kinds) for kinds, _ in _TEXT_OF)


def _canonical(key: Any) -> str:  # noqa: ANN401 -- whatever keys are
    for kinds, text_of in _TEXT_OF:
        if isinstance(key, kinds):
            return text_of(key)
    raise SegmentKeyError(type(key).__name__)


def _moment(key: datetime) -> str:
    # The same moment is one key, whatever its zone; without a zone it is no moment.
    return f"d{key.isoformat()}" if key.tzinfo is None else f"t{(key - _EPOCH) // _MICROSECOND}"


_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND: Final = timedelta(microseconds=1)
_TEXT_OF: Final[list[tuple[type | UnionType, Callable[[Any], str]]]] = [
    # Subclasses before what they are subclasses of; members of text enums are their text.
    (str, lambda key: f"s{len(key)}:{str.__str__(key)}"),
    (int | float | Decimal | Fraction, lambda key: f"n{Fraction(key)}"),
    (Enum, lambda key: f"e{type(key).__qualname__}.{key.name}"),
    (UUID, lambda key: f"u{key.hex}"),
    (datetime, _moment),
    (date | time, lambda key: f"d{key.isoformat()}"),
    (timedelta, lambda key: f"i{key // _MICROSECOND}"),
    (bytes, lambda key: f"b{key.hex()}"),
    (tuple, lambda key: f"({','.join(map(_canonical, key))})"),
    (NoneType, lambda _: "-"),
]
