"""Hypothesis strategies for what every pattern takes: keys, streams, events, pages, shards."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from datapatterns.event_sourcing import EventTypes, StreamId
from datapatterns.event_sourcing.events import KEY_BYTES_MAX
from datapatterns.event_sourcing.evolution.event_types import EVENT_TYPES
from datapatterns.event_sourcing.persons.personal import SubjectForgotten
from datapatterns.testing.models.from_hints import field_names, storable, text

T = TypeVar("T")

AWKWARD_TEXTS: Final = (
    "",
    " ",
    "a ",  # char(n) drops the blank
    "A",
    "a",  # equal to A for a case-insensitive collation
    "é",
    "e\u0301",  # looks the same, is two characters
    "ß",
    "ss",
    "\u0131",  # i without its dot: upper() is I
    "İ",  # lower() makes it longer
    "a-b",
    "ab",  # linguistic collations sort it next to a-b
    "10",
    "9",
    "%",
    "_",
    "\\",
    "'",
    '"',
    "{a}:b",
    "a:b",
    "../a",
    "\n",
    "\u200b",  # no width
    "\ufeff",
    "\uffff",
    "🦜",  # beyond 16 bits: UTF-16 would sort it before the one above
    "\U0010ffff",
)
"""Keys that are easily mixed up, sorted differently by collations, or misread by encodings."""


def text_keys(*, bytes_max: int = KEY_BYTES_MAX, empty: bool = True) -> SearchStrategy[str]:
    """Return text that PostgreSQL can store, at most ``bytes_max`` bytes of UTF-8.

    Among it is what is awkward (`AWKWARD_TEXTS`) and what is as long as can be.

    Raises:
        ValueError: Hardly any text is that short.
    """
    if bytes_max < _BYTES_PER_CHARACTER:
        raise ValueError(f"{bytes_max} bytes do not hold every character; allow at least 4")
    longest = [letter * (bytes_max // len(letter.encode())) for letter in "aß🦜"]
    fitting = [key for key in AWKWARD_TEXTS if len(key.encode()) <= bytes_max]
    keys = text(max_size=bytes_max // _BYTES_PER_CHARACTER) | st.sampled_from([*fitting, *longest])
    return keys if empty else keys.filter(bool)


def integer_keys(*, bits: int = 64) -> SearchStrategy[int]:
    """Return integers of a signed column of that many bits, its bounds and their neighbours."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    edges = {0, 1, -1, low, low + 1, high, high - 1}
    edges |= {edge for edge in (2**31 - 1, 2**31, -(2**31), 2**53 + 1) if low <= edge <= high}
    return st.integers(low, high) | st.sampled_from(sorted(edges, key=abs))


def uuid_keys() -> SearchStrategy[UUID]:
    """Return UUIDs of every version, the first and the last."""
    return st.uuids() | st.sampled_from([UUID(int=0), UUID(int=2**128 - 1)])


def bytes_keys(*, bytes_max: int = KEY_BYTES_MAX) -> SearchStrategy[bytes]:
    """Return bytes, zeros among them, and what is no UTF-8."""
    return st.binary(max_size=bytes_max) | st.sampled_from([b"", b"\0", b"\xff", b"a\0b"])


_KINDS: Final[dict[type, Callable[[], SearchStrategy[Any]]]] = {
    str: text_keys,
    int: integer_keys,
    UUID: uuid_keys,
    bytes: bytes_keys,
}


def keys(*kinds: type) -> SearchStrategy[Any]:
    """Return keys of these Python types; of all that keys can have, if none is given.

    Raises:
        ValueError: There are no keys of such a type.
    """
    unknown = [kind.__name__ for kind in kinds if kind not in _KINDS]
    if unknown:
        raise ValueError(f"no keys of {', '.join(unknown)}; there are str, int, UUID and bytes")
    return st.one_of([_KINDS[kind]() for kind in kinds or _KINDS])


def shard_sets(*, shards_min: int = 1, shards_max: int = 8) -> SearchStrategy[list[str]]:
    """Return names of shards, in no order: none is twice in a set."""
    names = st.builds(str.__add__, st.sampled_from("asz"), st.text("az09_", max_size=39))
    numbered = st.integers(0, 2 * shards_max).map("s{}".format)
    return st.lists(numbered | names, min_size=shards_min, max_size=shards_max, unique=True)


def stream_ids(
    *,
    categories: SearchStrategy[str] | None = None,
    keys: SearchStrategy[str] | None = None,
    tenants: SearchStrategy[str] | None = None,
) -> SearchStrategy[StreamId]:
    """Return streams with names that are as awkward as names may be."""
    any_category = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,99}", fullmatch=True)
    return st.builds(
        StreamId,
        categories or st.sampled_from(["a", "A", "a.b", "_"]) | any_category,
        keys or text_keys(empty=False),
        tenants or st.just("") | text_keys(),
    )


def events(
    *classes: type, types: EventTypes = EVENT_TYPES, **fields: SearchStrategy[Any]
) -> SearchStrategy[Any]:
    """Return events of these declared classes, made from their annotations.

    What comes out can be stored and comes back the same: text without U+0000, integers of 63
    bits, times with a zone, no NaN. A class may refuse values by raising ValueError.

    Args:
        classes: Declared by ``@event``; all declared classes, if none is given.
        types: Where they are declared.
        fields: What to take for a field of this name, in every class that has it.

    Raises:
        EventTypeError: A class is not declared.
        TypeError: A field is annotated with something that cannot be drawn; give it in ``fields``.
        ValueError: No class has a field of that name, or none is declared.
    """
    declared = types._by_class  # noqa: SLF001 -- of the same library
    chosen = classes or tuple(cls for cls in declared if cls is not SubjectForgotten)
    if not chosen:
        raise ValueError("no event is declared")
    for cls in chosen:
        types.of(cls)
    names = {name for cls in chosen for name in field_names(cls)}
    if unknown := fields.keys() - names:
        raise ValueError(f"no event has a field {', '.join(sorted(unknown))}")
    return st.one_of([storable(cls, fields) for cls in chosen])


def pages(items: Sequence[T]) -> SearchStrategy[list[list[T]]]:
    """Return ``items`` cut into pages in their order; the simplest is one page of all."""
    if not items:
        return st.just([])
    cuts = st.sets(st.integers(1, len(items) - 1)) if len(items) > 1 else st.just(set())
    return cuts.map(lambda at: _cut(items, sorted(at)))


_BYTES_PER_CHARACTER: Final = 4


def _cut(items: Sequence[T], at: list[int]) -> list[list[T]]:
    bounds = [0, *at, len(items)]
    return [list(items[low:high]) for low, high in pairwise(bounds)]
