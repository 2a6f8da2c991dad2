"""What a page of events does to hashes and sorted sets; without Redis.

Changes to one place are merged, so a page costs one command for each place that it touches.
What depends on the stored value stays an addition until that value is known; then every change
is absolute, and none of the commands that carry it out can fail for what is stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

SCORE_MAX: Final = 2**53
"""Scores are floats in Redis; up to here every integer is one."""


class Place(NamedTuple):
    """One field of a hash, or one member of a sorted set; a tuple, for it is hashed per change.

    Attributes:
        kind: ``hash`` or ``zset``.
        name: The structure's, without the prefix of its keys.
        field: The field, or the member.
    """

    kind: str
    name: str
    field: str


@dataclass(frozen=True, slots=True)
class Put:
    """The place gets this value."""

    value: str | int


@dataclass(frozen=True, slots=True)
class Add:
    """This is added to what the place holds, or to 0."""

    amount: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The place is emptied."""


Change = Put | Add | Gone
GONE: Final = Gone()


class RedisChanges:
    """Collects what handlers want changed, in the order of the log.

    Fields hold text; an integer is written as its digits and may have any number of them. Scores
    are integers up to 2**53 on either side of 0. Use smallest units, such as cents.
    """

    def __init__(self) -> None:
        self._changes: dict[Place, Change] = {}

    def increment(self, name: str, field: object, amount: int = 1) -> None:
        """Add ``amount`` to a field of the hash ``name``."""
        self._add(Place("hash", name, _text(field)), amount)

    def put(self, name: str, field: object, value: str | int) -> None:
        """Store ``value`` in a field of the hash ``name``."""
        self._changes[Place("hash", name, _text(field))] = Put(_text(value))

    def remove(self, name: str, field: object) -> None:
        """Take a field out of the hash ``name``."""
        self._changes[Place("hash", name, _text(field))] = GONE

    def add_score(self, name: str, member: object, amount: int = 1) -> None:
        """Add ``amount`` to the score of ``member`` in the sorted set ``name``."""
        self._add(Place("zset", name, _text(member)), amount)

    def set_score(self, name: str, member: object, score: int) -> None:
        """Give ``member`` this score in the sorted set ``name``."""
        self._changes[Place("zset", name, _text(member))] = Put(_integer(score))

    def remove_member(self, name: str, member: object) -> None:
        """Take ``member`` out of the sorted set ``name``."""
        self._changes[Place("zset", name, _text(member))] = GONE

    def __iter__(self) -> Iterator[tuple[Place, Change]]:
        return iter(self._changes.items())

    def __len__(self) -> int:
        return len(self._changes)

    def additions(self) -> list[Place]:
        """Return the places whose stored value is needed, sorted, so grouped by structure."""
        return sorted(place for place, change in self if isinstance(change, Add))

    def resolved(self, stored: Mapping[Place, str]) -> dict[Place, str | None]:
        """Return what each place holds afterwards, or None for nothing.

        Args:
            stored: What the places of `additions` hold; those that are empty are left out.

        Raises:
            ValueError: A field is incremented that does not hold an integer, or a score leaves
                the range in which it is exact.
        """
        return {place: _outcome(place, change, stored.get(place)) for place, change in self}

    def _add(self, place: Place, amount: int) -> None:
        before = self._changes.get(place)
        amount = _integer(amount)
        match before:
            case None:
                self._changes[place] = Add(amount)
            case Add(earlier):
                self._changes[place] = Add(earlier + amount)
            case Put(value):
                self._changes[place] = Put(_sum(place, value, amount))
            case Gone():
                self._changes[place] = Put(amount)


def _outcome(place: Place, change: Change, stored: str | None) -> str | None:
    if isinstance(change, Gone):
        return None
    if isinstance(change, Put):
        after = change.value
    else:
        after = change.amount if stored is None else _sum(place, stored, change.amount)
    if place.kind == "zset" and abs(int(after)) > SCORE_MAX:
        raise ValueError(f"a score in {place.name} leaves the range in which scores are exact")
    return str(after)


def _sum(place: Place, value: str | int, amount: int) -> int:
    try:
        return int(value) + amount
    except ValueError as error:
        raise ValueError(f"a field of {place.name} is incremented but holds text") from error


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__} is no integer; count in smallest units")
    return value


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{type(value).__name__} is neither text nor an integer; convert it")
    text = str(value)
    if not text.isascii():
        text.encode()  # half a surrogate pair is refused here, where the event is known
    return text
