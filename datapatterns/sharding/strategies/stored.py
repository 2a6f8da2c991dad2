"""What of a strategy is final, and what a map says about the rest.

A declared strategy is where a map begins. Bounds of ranges, listed keys and entries of a directory
can change while the map is in use, and any key can be pinned: these are kept in the map, and
strategies that route are made of both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from datapatterns.sharding.strategies.composite import Composite
from datapatterns.sharding.strategies.directory import Directory
from datapatterns.sharding.strategies.hash_buckets import Hash
from datapatterns.sharding.strategies.listed import ListMap
from datapatterns.sharding.strategies.ranges import Range
from datapatterns.sharding.strategies.strategy import KeyPart, ShardingStrategy


@dataclass(frozen=True, slots=True)
class StoredPlaces:
    """What a map keeps of a strategy.

    Attributes:
        ranges: The bucket of each range, by where it begins; the lowest by None.
        entries: The bucket of each key that is listed or assigned.
        pins: The bucket that a key has for itself.
    """

    ranges: Mapping[KeyPart | None, int] = field(default_factory=dict)
    entries: Mapping[KeyPart, int] = field(default_factory=dict)
    pins: Mapping[KeyPart, int] = field(default_factory=dict)


def places_of(strategy: ShardingStrategy) -> StoredPlaces:
    """Return what a map is to keep of a declared strategy."""
    parts = list(_parts(strategy))
    ranges: dict[KeyPart | None, int] = {}
    entries: dict[KeyPart, int] = {}
    for part in parts:
        if isinstance(part, Range):
            ranges = dict(zip((None, *part.bounds), part.numbers, strict=True))
        elif isinstance(part, ListMap | Directory):
            entries = dict(part.entries)
    return StoredPlaces(ranges, entries)


def routing_strategy(declared: ShardingStrategy, places: StoredPlaces) -> ShardingStrategy:
    """Return the strategy that routes by a map."""
    base = _with_places(declared, places)
    return Directory(base, places.pins) if places.pins else base


def unpinned(strategy: ShardingStrategy, declared: ShardingStrategy) -> ShardingStrategy:
    """Return where keys would go by a strategy of `routing_strategy` if none were pinned."""
    is_wrapped = isinstance(strategy, Directory) and (
        not isinstance(declared, Directory) or isinstance(strategy.default, Directory)
    )
    return strategy.default if is_wrapped and isinstance(strategy, Directory) else strategy


def range_of(strategy: ShardingStrategy) -> Range | None:
    """Return the ranges that a strategy consists of, or falls back on; None if there are none."""
    return next((part for part in _parts(strategy) if isinstance(part, Range)), None)


def final_part(strategy: ShardingStrategy) -> str:
    """Return what of a declared strategy must stay the same as long as there is data."""
    match strategy:
        case Hash():
            return f"{strategy.buckets}/postgresql"
        case Range():
            return "ranges"
        case ListMap():
            return f"default {strategy.default}"
        case Directory():
            return f"over {strategy.default.kind} {final_part(strategy.default)}"
        case Composite():
            return " then ".join(f"{part.kind} {_whole(part)}" for part in strategy.parts)
        case _:
            return repr(strategy)


def _whole(part: ShardingStrategy) -> str:
    """Nothing of what places a part of a key can change: its buckets are numbered by both."""
    match part:
        case Range():
            return f"{part.bounds} {part.numbers}"
        case ListMap():
            return f"{part.entries} default {part.default}"
        case _:
            return final_part(part)


def _parts(strategy: ShardingStrategy) -> Iterator[ShardingStrategy]:
    yield strategy
    if isinstance(strategy, Directory):
        yield from _parts(strategy.default)


def _with_places(declared: ShardingStrategy, places: StoredPlaces) -> ShardingStrategy:
    match declared:
        case Range():
            bounds = [bound for bound in places.ranges if bound is not None]
            return Range(bounds, places.ranges.values())
        case ListMap():
            return ListMap(places.entries, declared.default)
        case Directory():
            return Directory(_with_places(declared.default, places), places.entries)
        case _:
            return declared
