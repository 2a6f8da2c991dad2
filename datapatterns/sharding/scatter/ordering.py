"""Put rows in the order that PostgreSQL would put them in, where Python compares values alike.

What is of any other type is refused, also if a column turns out to hold it against its declaration.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeAlias
from uuid import UUID

from datapatterns.errors import UnmergeableQueryError

Rows: TypeAlias = Sequence[Sequence[Any]]
Ranks: TypeAlias = Mapping[int, Mapping[Any, int]]
"""For some columns, the place of each value in PostgreSQL's order."""

NO_RANKS: Final[Ranks] = {}
_EXACT: frozenset[type] = frozenset(
    (int, bool, Decimal, float, date, datetime, UUID, bytes, type(None))
)
# Of these, any two compare as they do in PostgreSQL; of floats and decimals all but NaN.
_PLAIN: frozenset[type] = frozenset((int, bool, date, UUID, bytes))


@dataclass(frozen=True, slots=True)
class OrderKey:
    """One column of an ORDER BY.

    Attributes:
        position: Which column of the partial rows.
        descending: Whether large values come first.
        nulls_first: Whether NULL does.
        text: Whether it is text that the servers order as Python does: under collation "C".
        ranked: Whether PostgreSQL has told the places of its values.
    """

    position: int
    descending: bool = False
    nulls_first: bool = False
    text: bool = False
    ranked: bool = False


def ordered_rows(
    rows: Rows,
    order: Sequence[OrderKey],
    ranks: Ranks = NO_RANKS,
    *,
    plain: Collection[int] = (),
) -> list[Sequence[Any]]:
    """Return ``rows`` as ORDER BY would.

    Args:
        rows: In any order.
        order: What to order by.
        ranks: The places of values that only PostgreSQL can compare.
        plain: Columns known to hold nothing but NULL and values that compare as they do there.

    Raises:
        UnmergeableQueryError: Python orders such values otherwise than PostgreSQL.
    """
    found = list(rows)
    if not order or len(found) <= 1:
        return found
    one_way = len({key.descending for key in order}) == 1
    if one_way and all(key.position in plain for key in order):
        try:
            return _sorted_as_is(found, order)
        except TypeError:
            pass  # NULL was compared with something else
    as_they_are = [_is_plain(key, [row[key.position] for row in found]) for key in order]
    if one_way and all(as_they_are):
        return _sorted_as_is(found, order)
    # The last column first: each pass keeps the order of what it finds equal.
    for key, as_is in zip(reversed(order), reversed(as_they_are), strict=True):
        function = itemgetter(key.position) if as_is else _sort_function(key, ranks)
        found.sort(key=function, reverse=key.descending)
    return found


def _sorted_as_is(rows: list[Sequence[Any]], order: Sequence[OrderKey]) -> list[Sequence[Any]]:
    rows.sort(key=itemgetter(*(key.position for key in order)), reverse=order[0].descending)
    return rows


def first_rows(
    rows: Sequence[Sequence[Any]], keys: Sequence[OrderKey], ranks: Ranks = NO_RANKS
) -> list[Sequence[Any]]:
    """Return the first of each run of rows that agree in ``keys``, as DISTINCT ON does."""
    functions = [_sort_function(key, ranks) for key in keys]
    runs = groupby(rows, key=lambda row: tuple(function(row) for function in functions))
    return [next(run) for _, run in runs]


def merged_chunks(
    sources: Sequence[Iterator[Rows]], order: Sequence[OrderKey]
) -> Iterator[list[Sequence[Any]]]:
    """Give the rows of all sources in order, holding one chunk of each.

    Args:
        sources: The chunks of each shard, whose rows come in order.
        order: By what they are ordered.

    Raises:
        UnmergeableQueryError: Python orders such values otherwise than PostgreSQL.
    """
    held: dict[int, list[Sequence[Any]]] = {}
    unfinished = dict(enumerate(sources))
    while True:
        for number in [each for each in unfinished if not held.get(each)]:
            held[number] = list(next(unfinished[number], ()))
            if not held[number]:
                del unfinished[number], held[number]
        if not unfinished:
            break
        # Whatever is still to come from a source lies behind the last row that it has sent.
        bound = ordered_rows([held[number][-1] for number in unfinished], order)[0]
        rows = [row for rows in held.values() for row in _until(bound, rows, order)]
        if not rows:  # or this would go on for ever
            raise UnmergeableQueryError(
                "rows that a shard orders otherwise than Python", "declare columns as they are"
            )
        yield ordered_rows(rows, order)
        held = {number: rows for number, rows in held.items() if rows}
    if held:
        yield ordered_rows([row for rows in held.values() for row in rows], order)


def _until(
    bound: Sequence[Any], rows: list[Sequence[Any]], order: Sequence[OrderKey]
) -> list[Sequence[Any]]:
    """Take from ``rows`` those that do not lie behind ``bound``."""

    def is_behind(row: Sequence[Any]) -> bool:
        return ordered_rows([row, bound], order)[0] is not row

    end = bisect_right(rows, False, key=is_behind)
    taken = rows[:end]
    del rows[:end]
    return taken


def _is_plain(key: OrderKey, values: Sequence[Any]) -> bool:
    """Return whether values need nothing done to them to be compared: it costs more than that."""
    kinds = set(map(type, values))
    if key.ranked or len(kinds) != 1:
        return False
    (kind,) = kinds
    if kind is str:
        return key.text
    if kind is float or kind is Decimal:
        return not any(value != value for value in values)  # noqa: PLR0124 -- NaN is not
    if kind is datetime:
        # Two times of a zone with summer and winter are compared by what clocks show.
        zones = {value.tzinfo for value in values}
        return len(zones) == 1 and all(zone is None or str(zone) == "UTC" for zone in zones)
    return kind in _PLAIN


def _sort_function(key: OrderKey, ranks: Ranks) -> Callable[[Sequence[Any]], tuple[bool, Any]]:
    # A descending pass is reversed, and with it where NULLs go.
    null_rank = key.nulls_first == key.descending
    places = ranks[key.position] if key.ranked else {}

    def sort_key(row: Sequence[Any]) -> tuple[bool, Any]:
        value = row[key.position]
        if value is None:
            return null_rank, 0
        if key.ranked:
            return not null_rank, places[value]
        if key.text and type(value) is str:
            return not null_rank, value
        return not null_rank, comparable(value)

    return sort_key


def comparable(value: Any) -> Any:  # noqa: ANN401 -- any value
    """Return something that compares and hashes as PostgreSQL compares ``value``."""
    if type(value) not in _EXACT:
        raise UnmergeableQueryError(
            f"comparing values of type {type(value).__name__}",
            'order text under COLLATE "C"; cast other types, or name the shard key',
        )
    if isinstance(value, float | Decimal):
        # To PostgreSQL NaN equals NaN and is greater than everything else.
        return (True, 0) if math.isnan(value) else (False, value)
    if isinstance(value, datetime) and value.tzinfo is not None:
        # Times of one zone would be compared by their clock faces, which repeat in autumn.
        return value.astimezone(UTC)
    return value
