"""Which strategies can place the rows of a group."""

from collections.abc import Sequence

from datapatterns.sharding.key_types import PYTHON_TYPES, KeyTypeName
from datapatterns.sharding.strategies import (
    Composite,
    Directory,
    Hash,
    ListMap,
    Modulo,
    Range,
    ShardingStrategy,
)
from datapatterns.sharding.strategies.stored import range_of


def check_strategy(
    group: str, strategy: ShardingStrategy, key_types: Sequence[KeyTypeName]
) -> None:
    """Refuse a strategy that cannot place keys of these columns.

    Raises:
        ValueError: It cannot.
    """
    if isinstance(strategy, Composite):
        if len(key_types) != len(strategy.parts):
            raise ValueError("Composite places keys of two columns; let key be a pair of types")
        for part, type_ in zip(strategy.parts, key_types, strict=True):
            if not isinstance(part, Hash | Modulo | Range | ListMap):
                raise ValueError(  # noqa: TRY004 -- as the other refusals
                    f"a part of a key cannot be placed by {type(part).__name__}; use Hash, Range,"
                    " ListMap or Modulo"
                )
            _check_type(group, part, type_)
        return
    if len(key_types) != 1:
        raise ValueError("keys of two columns are placed by Composite; use it, or one column")
    _check_single(strategy)
    _check_type(group, strategy, key_types[0])


def _check_single(strategy: ShardingStrategy) -> None:
    if not isinstance(strategy, Hash | Modulo | Range | ListMap | Directory):
        raise ValueError(  # noqa: TRY004 -- as the other refusals
            f"rows of one key column cannot be placed by {type(strategy).__name__}; use Hash,"
            " Range, ListMap, Directory or Modulo"
        )
    if isinstance(strategy, Directory) and isinstance(
        strategy.default, ListMap | Directory | Composite
    ):
        raise ValueError(  # noqa: TRY004 -- as the other refusals
            "a directory over a list or another directory would be two lists of keys; put all of"
            " them into one"
        )
    ranges = range_of(strategy)
    if ranges is not None and "" in ranges.bounds:
        raise ValueError("nothing lies below the empty text; let it be no bound")


def _check_type(group: str, strategy: ShardingStrategy, type_: KeyTypeName) -> None:
    placed = strategy.key_type
    if placed is not None and placed is not PYTHON_TYPES[type_]:
        raise ValueError(
            f"{type(strategy).__name__} places keys of {placed.__name__}, group {group!r} has"
            f" {type_} keys; let both agree"
        )
