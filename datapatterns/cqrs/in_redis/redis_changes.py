"""What a page of events does to hashes, sorted sets and documents; without Redis.

Changes to one place are merged, so a page costs one command for each place that it touches.
What depends on the stored value stays open until that value is known; then every change is
absolute, and none of the commands that carry it out can fail for what is stored.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Final, ParamSpec, assert_never

from datapatterns.cqrs.definition import DELETE
from datapatterns.cqrs.in_redis.json_text import json_text, json_value
from datapatterns.cqrs.in_redis.redis_keys import Place, Structure

SCORE_MAX: Final = 2**53
"""Scores are floats in Redis; up to here every integer is one."""

TEXT_BYTES_MAX: Final = 2**20
"""The longest field, member and value; a page is sent to Redis as a whole."""

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Put:
    """The place gets this value."""

    value: str | int


@dataclass(frozen=True, slots=True)
class Add:
    """This is added to what the place holds, or to 0."""

    amount: int


@dataclass(frozen=True, slots=True)
class Fold:
    """The document becomes what these make of it, one after the other."""

    steps: list[Callable[[str | None], str | None]]


@dataclass(frozen=True, slots=True)
class Gone:
    """The place is emptied."""


Change = Put | Add | Fold | Gone
GONE: Final = Gone()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a page makes of a read model.

    Attributes:
        places: What each place that it touches holds afterwards, or None for nothing.
        dropped: Which structures are emptied before.
    """

    places: Mapping[Place, str | None] = field(default_factory=dict)
    dropped: Collection[Structure] = ()


class RedisChanges:
    """Collects what handlers want changed, in the order of the log.

    Fields hold text; an integer is written as its digits and may have any number of them. Scores
    are integers up to 2**53 on either side of 0. Use smallest units, such as cents.

    Documents are JSON values; of classes that JSON does not know, those that msgspec writes come
    as what it makes of them (a dataclass as an object, a Decimal or a date as text). Numbers are
    kept as written, so integers are exact however long, though a reader in JavaScript rounds
    beyond 2**53. At most 1 MiB each, and nested at most 100 deep.
    """

    def __init__(self) -> None:
        self._changes: dict[Structure, dict[str, Change]] = {}
        self._dropped: set[Structure] = set()

    def increment(self, name: str, field: object, amount: int = 1) -> None:
        """Add ``amount`` to a field of the hash ``name``."""
        self._add(Place("hash", _text(name), _text(field)), amount)

    def put(self, name: str, field: object, value: str | int) -> None:
        """Store ``value`` in a field of the hash ``name``."""
        self._set(Place("hash", _text(name), _text(field)), Put(_text(value)))

    def remove(self, name: str, field: object) -> None:
        """Take a field out of the hash ``name``."""
        self._set(Place("hash", _text(name), _text(field)), GONE)

    def drop(self, name: str) -> None:
        """Empty the hash ``name``."""
        self._drop(Structure("hash", _text(name)))

    def add_score(self, name: str, member: object, amount: int = 1) -> None:
        """Add ``amount`` to the score of ``member`` in the sorted set ``name``."""
        self._add(Place("zset", _text(name), _text(member)), amount)

    def set_score(self, name: str, member: object, score: int) -> None:
        """Give ``member`` this score in the sorted set ``name``."""
        self._set(Place("zset", _text(name), _text(member)), Put(_integer(score)))

    def remove_member(self, name: str, member: object) -> None:
        """Take ``member`` out of the sorted set ``name``."""
        self._set(Place("zset", _text(name), _text(member)), GONE)

    def drop_scores(self, name: str) -> None:
        """Empty the sorted set ``name``."""
        self._drop(Structure("zset", _text(name)))

    def put_json(self, name: str, key: object, document: object) -> None:
        """Store ``document`` under ``key`` among the documents ``name``."""
        self._set(Place("json", _text(name), _text(key)), Put(json_text(document)))

    def update_json(
        self,
        name: str,
        key: object,
        function: Callable[Concatenate[Any, P], object],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Store what ``function`` makes of the document under ``key``, or remove it.

        Args:
            name: Which documents.
            key: Which of them.
            function: Gets the document as it was, None if there is none, then the further
                arguments; it returns the new one or ``DELETE``. It is called when the page is
                read, so give it what it needs as arguments. It may change the document in place.
            args: Further arguments.
            kwargs: Further arguments.
        """

        def step(before: str | None) -> str | None:
            document = None if before is None else json_value(before)
            after = function(document, *args, **kwargs)
            return None if after is DELETE else json_text(after)

        place = Place("json", _text(name), _text(key))
        match self._before(place):
            case None:
                self._set(place, Fold([step]))
            case Fold(steps):
                steps.append(step)
            case Put(value):
                self._set(place, _put(step(str(value))))
            case _:
                self._set(place, _put(step(None)))

    def remove_json(self, name: str, key: object) -> None:
        """Take the document under ``key`` out of the documents ``name``."""
        self._set(Place("json", _text(name), _text(key)), GONE)

    def drop_json(self, name: str) -> None:
        """Remove all documents ``name``."""
        self._drop(Structure("json", _text(name)))

    def __iter__(self) -> Iterator[tuple[Place, Change]]:
        for structure, changes in self._changes.items():
            for member, change in changes.items():
                yield Place(*structure, member), change

    def __len__(self) -> int:
        return sum(map(len, self._changes.values()))

    def touched(self) -> list[Structure]:
        """Return the structures that are changed, sorted."""
        return sorted(self._dropped | self._changes.keys())

    def additions(self) -> list[Place]:
        """Return the places whose stored value is needed, sorted, so grouped by structure."""
        return sorted(place for place, change in self if isinstance(change, Add | Fold))

    def resolved(self, stored: Mapping[Place, str]) -> Outcome:
        """Return what is to be there afterwards.

        Args:
            stored: What the places of `additions` hold; those that are empty are left out.

        Raises:
            Exception: Whatever a function given to `update_json` raises.
            TypeError: Such a function returned no document.
            ValueError: A field is incremented that does not hold an integer, or a score leaves
                the range in which it is exact, or a document cannot be stored.
        """
        places = {place: _outcome(place, change, stored.get(place)) for place, change in self}
        return Outcome(places, sorted(self._dropped))

    def _before(self, place: Place) -> Change | None:
        before = self._changes.get(place.structure, {}).get(place.field)
        return GONE if before is None and place.structure in self._dropped else before

    def _set(self, place: Place, change: Change) -> None:
        self._changes.setdefault(place.structure, {})[place.field] = change

    def _drop(self, structure: Structure) -> None:
        self._changes.pop(structure, None)
        self._dropped.add(structure)

    def _add(self, place: Place, amount: int) -> None:
        amount = _integer(amount)
        match self._before(place):
            case Add(earlier):
                self._set(place, Add(earlier + amount))
            case Put(value):
                self._set(place, Put(_sum(place, value, amount)))
            case None:
                self._set(place, Add(amount))
            case _:
                self._set(place, Put(amount))


def _put(text: str | None) -> Put | Gone:
    return GONE if text is None else Put(text)


def _outcome(place: Place, change: Change, stored: str | None) -> str | None:
    match change:
        case Gone():
            return None
        case Fold(steps):
            text = stored
            for step in steps:
                text = step(text)
            return text
        case Put(value):
            after = value
        case Add(amount) if stored is None:
            after = amount
        case Add(amount):
            after = _sum(place, stored, amount)
        case _:
            assert_never(change)
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
    # Half a surrogate pair is refused here, where the event is known.
    size = len(text) if text.isascii() else len(text.encode())
    if size > TEXT_BYTES_MAX:
        raise ValueError(f"a text has {size} bytes, more than {TEXT_BYTES_MAX}; shorten it")
    return text
