"""Which aggregates can be counted, and what has to be counted for each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    FunctionElement,
    FunctionFilter,
    Integer,
    Numeric,
    case,
    literal,
    not_,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.sqltypes import NullType
from sqlalchemy.sql.visitors import iterate

from datapatterns.materialized_view.counting_plan import Branch, Measure, Output, OutputKind
from datapatterns.materialized_view.sources import NotCountableError, are_the_same, plain, shown
from datapatterns.materialized_view.totality import is_calculation

_AGGREGATES = frozenset({
    "array_agg", "avg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "count", "every",
    "json_agg", "jsonb_agg", "max", "min", "mode", "range_agg", "stddev", "string_agg", "sum",
    "variance",
})  # fmt: skip
_COUNTED = {
    "count": OutputKind.COUNT,
    "sum": OutputKind.SUM,
    "avg": OutputKind.AVG,
    "bool_and": OutputKind.ALL,
    "every": OutputKind.ALL,
    "bool_or": OutputKind.ANY,
}


@dataclass(slots=True)
class Found:
    """A measure that some aggregate needs.

    Attributes:
        counted: What is counted where it is not NULL.
        value: The same without the condition of a FILTER.
        is_summed: Whether some aggregate needs its sum.
    """

    counted: ColumnElement[Any]
    value: ColumnElement[Any]
    is_summed: bool


@dataclass(slots=True)
class AggregateReader:
    """Reads the aggregates of one query, each measure once.

    Attributes:
        found: The measures.
    """

    found: list[Found] = field(default_factory=list)

    def read(self, aggregate: ColumnElement[Any]) -> Output:
        """Return what shows ``aggregate``.

        Raises:
            NotCountableError: It cannot be counted exactly.
        """
        call, condition = aggregate, None
        if isinstance(aggregate, FunctionFilter):
            call, condition = aggregate.func, aggregate.criterion
        kind, argument = _counted(call)
        if argument is None:
            if condition is None:
                return Output(OutputKind.ROWS)
            argument = literal(1)
        if kind in {OutputKind.SUM, OutputKind.AVG}:
            _require_exact(kind, argument)
        summed = kind in {OutputKind.SUM, OutputKind.AVG}
        index = self._measure(argument, condition, is_summed=summed)
        if kind not in {OutputKind.ALL, OutputKind.ANY}:
            return Output(kind, index)
        decides = not_(argument) if kind is OutputKind.ALL else argument
        one = case((decides, literal(1)))
        return Output(kind, index, self._measure(one, condition, is_summed=False))

    def measure(self, index: int, branches: Sequence[Branch]) -> Measure:
        """Return the measure of that number, as it is in all ``branches``."""
        values = [branch.values[index] for branch in branches]
        return Measure(self.found[index].is_summed, all(map(_is_integral, values)))

    def _measure(
        self,
        value: ColumnElement[Any],
        condition: ColumnElement[Any] | None,
        *,
        is_summed: bool,
    ) -> int:
        counted = value if condition is None else case((plain(condition), value))
        for index, known in enumerate(self.found):
            if are_the_same(known.counted, counted):
                known.is_summed |= is_summed
                return index
        self.found.append(Found(counted, value, is_summed))
        return len(self.found) - 1


def is_aggregate(element: Any) -> bool:  # noqa: ANN401 -- whatever was selected
    """Return whether ``element`` is one of the aggregates that we know, counted or not."""
    call = element.func if isinstance(element, FunctionFilter) else element
    return isinstance(call, FunctionElement) and call.name.lower() in _AGGREGATES


def _counted(call: Any) -> tuple[OutputKind, Any]:  # noqa: ANN401 -- any aggregate
    name, arguments = call.name.lower(), [*call.clauses]
    named = next((getattr(a, "name", None) for a in arguments if not isinstance(a, Column)), None)
    if getattr(call, "packagenames", None) or name not in _COUNTED:
        raise NotCountableError(f"{shown(call)} cannot be counted; count, sum and avg can")
    if name == "count" and (not arguments or named == "*"):
        return OutputKind.COUNT, None
    if len(arguments) != 1 or getattr(arguments[0], "operator", None) is operators.distinct_op:
        raise NotCountableError(f"{shown(call)} is no aggregate of one argument, each time anew")
    return _COUNTED[name], plain(arguments[0])


def _require_exact(kind: OutputKind, value: ColumnElement[Any]) -> None:
    # A function's type may be unknown here; the server says which sum() it calls for.
    if not isinstance(value.type, Integer | Numeric | NullType):
        raise NotCountableError(f"{kind}({shown(value)}) is not exact for {value.type!r}")
    # The scale of a sum decides how far a division goes; a value that has come and gone would
    # leave its scale behind.
    if kind is OutputKind.AVG and not is_calculation(value):
        raise NotCountableError(f"avg({shown(value)}) is not exact: its scale may change")


def _is_integral(value: ColumnElement[Any]) -> bool:
    columns = [part for part in iterate(value) if isinstance(part, Column)]
    return is_calculation(value) and all(isinstance(c.type, Integer) for c in columns)
