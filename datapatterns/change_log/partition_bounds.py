"""Which rows a partition may hold, as far as columns alone tell.

PostgreSQL writes bounds down as SQL; read here is what it writes, under the settings of the
function ``partition_bound``. What is not understood bounds nothing: a part of a table that is too
large costs time, one that is too small would leave wrong rows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

_RANGE: Final = re.compile(r"FOR VALUES FROM \((?P<lower>.*)\) TO \((?P<upper>.*)\)", re.DOTALL)
_LIST: Final = re.compile(r"FOR VALUES IN \((?P<values>.*)\)", re.DOTALL)
_VALUE: Final = re.compile(r"'(?P<quoted>(?:[^']|'')*)'|(?P<plain>[\w.+-]+)")
_VALUES: Final = re.compile(r"(?:'(?:[^']|'')*'|[\w.+-]+)(?:, (?:'(?:[^']|'')*'|[\w.+-]+))*")
_NO_VALUES: Final = frozenset({"MINVALUE", "MAXVALUE", "NULL"})


@dataclass(frozen=True, slots=True)
class Between:
    """What a partition by range holds: nothing that is NULL.

    Attributes:
        column: Of the table.
        lower: The least value, as text; None if there is none.
        upper: The value that all are below, or at most; None if there is none.
        includes_upper: Whether they may be equal to it.
    """

    column: str
    lower: str | None
    upper: str | None
    includes_upper: bool = False


@dataclass(frozen=True, slots=True)
class OneOf:
    """What a partition by list holds.

    Attributes:
        column: Of the table.
        values: As text.
        has_null: Whether NULL is among them.
    """

    column: str
    values: tuple[str, ...]
    has_null: bool = False


Bound: TypeAlias = Between | OneOf
Bounds: TypeAlias = tuple[Bound, ...]
"""All of them hold of each row of a partition. Of any row, if there are none."""


def read_bounds(written: Iterable[Mapping[str, Any]]) -> Bounds:
    """Return the bounds that the function ``partition_bounds`` has written.

    >>> read_bounds([{"by": "r", "columns": ["day"], "bound": "FOR VALUES FROM (1) TO ('9')"}])
    (Between(column='day', lower='1', upper='9', includes_upper=False),)
    >>> read_bounds([{"by": "l", "columns": ["town"], "bound": "FOR VALUES IN ('O''x', NULL)"}])
    (OneOf(column='town', values=("O'x",), has_null=True),)
    >>> read_bounds([{"by": "l", "columns": ["town"], "bound": "DEFAULT"}])
    ()
    """
    read = (_bound(level) for level in written)
    return tuple(bound for bound in read if bound is not None)


def _bound(level: Mapping[str, Any]) -> Bound | None:
    columns, bound = level["columns"], level["bound"]
    if columns[0] is None:
        return None
    if level["by"] == "r" and (found := _RANGE.fullmatch(bound)):
        ends = _values(found["lower"]), _values(found["upper"])
        # Of several columns the first decides, but for a value that both ends may share.
        lower, upper = (end[0] if end else None for end in ends)
        if lower is upper is None:
            return None
        return Between(columns[0], lower, upper, includes_upper=len(columns) > 1)
    if level["by"] == "l" and (found := _LIST.fullmatch(bound)):
        values = _values(found["values"])
        known = tuple(value for value in values if value is not None)
        return OneOf(columns[0], known, None in values) if values else None
    return None


def _values(written: str) -> list[str | None]:
    """Return the values, None for what is none; nothing if not all of it is understood."""
    if not _VALUES.fullmatch(written):
        return []
    return [_value(found) for found in _VALUE.finditer(written)]


def _value(found: re.Match[str]) -> str | None:
    if found["quoted"] is not None:
        return found["quoted"].replace("''", "'")
    return None if found["plain"] in _NO_VALUES else found["plain"]
