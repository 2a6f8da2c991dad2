"""Split a SELECT into what each shard sends and what PostgreSQL makes of all that.

The second statement is the first one again, over one table of what the shards sent: columns stand
for what they held, and aggregates for the same ones over partial results. Where an aggregate has no
partial results, the shards send their rows.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

from sqlalchemy import (
    ColumnClause,
    ColumnElement,
    Function,
    FunctionFilter,
    WithinGroup,
    column,
    literal_column,
    select,
    table,
)
from sqlalchemy import type_coerce as coerced
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import AggregateOrderBy, BindParameter, ClauseElement, Label
from sqlalchemy.util import immutabledict

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.mergeable import (
    SortExpression,
    position_of,
    sort_expression,
)
from datapatterns.sharding.scatter.partial_aggregates import combined_aggregate, is_decomposable
from datapatterns.sharding.scatter.refusals import AGGREGATES
from datapatterns.sharding.scatter.selected import (
    AnySelect,
    distinct_on_of,
    selected_columns,
    unlabelled,
    window_functions,
    windows_in,
)

PARTIAL_ROWS = "datapatterns_partial_rows"
"""The temporary table for what the shards send."""


def combine(
    statement: AnySelect, group_by: Sequence[ColumnElement[Any]], *, aggregated: bool
) -> tuple[AnySelect, AnySelect]:
    """Return what to ask each shard, and what to ask of all their answers; both without bounds.

    Args:
        statement: What the caller wants to know.
        group_by: By which groups.
        aggregated: Whether a row of it stands for several.

    Raises:
        UnmergeableQueryError: A column that is selected has no single value for a group.
    """
    rewriting = _Rewriting(statement, group_by, aggregated=aggregated)
    combined = rewriting.combined()
    return rewriting.partial(), combined


class _Rewriting:
    def __init__(
        self, statement: AnySelect, group_by: Sequence[ColumnElement[Any]], *, aggregated: bool
    ) -> None:
        self._statement = statement
        self._aggregated = aggregated
        windows = windows_in(statement)
        self._not_aggregates = window_functions(windows)
        self._drops_equal_rows = bool(
            statement._distinct  # noqa: SLF001 -- there is no public name
            and not (aggregated or windows or distinct_on_of(statement))
        )
        self._decomposed = aggregated and all(
            is_decomposable(part)
            for part in visitors.iterate(statement)
            if not self._is_of_a_window(part)
        )
        self._sent: list[Label[Any]] = []
        self._known: list[tuple[ColumnElement[Any], ColumnClause[Any]]] = []
        self._groups: list[ColumnElement[Any]] = []
        self._group_by = [(clause, self._add_group(clause)) for clause in group_by]

    def combined(self) -> AnySelect:
        """Return the statement over what the shards send."""
        statement, selected = self._statement, selected_columns(self._statement)
        outputs = [self._rewritten(unlabelled(each)) for each in selected]
        order = [self._sorted(clause, selected, outputs) for clause in statement._order_by_clauses]  # noqa: SLF001
        having = [self._rewritten(each) for each in statement._having_criteria]  # noqa: SLF001
        kinds = [coerced(out, each.type) for out, each in zip(outputs, selected, strict=True)]
        found: AnySelect = select(*(each.label(f"c{i}") for i, each in enumerate(kinds)))
        found = found.select_from(table(PARTIAL_ROWS, *(column(each.name) for each in self._sent)))
        found = found.group_by(*(place for _, place in self._group_by))
        found = found.having(*having).order_by(*order)
        if named := distinct_on_of(statement):
            found = found.ext(distinct_on(*(self._rewritten(unlabelled(each)) for each in named)))
        elif statement._distinct:  # noqa: SLF001 -- there is no public name
            found = found.distinct()
        # It names no mapped class any more, whatever its parts once belonged to.
        found._propagate_attrs = immutabledict()  # noqa: SLF001 -- nor for this
        return found

    def partial(self) -> AnySelect:
        """Return what each shard sends, after `combined` has found out what that needs."""
        sent = self._sent or [_nothing()]
        partial = self._statement.with_only_columns(*sent, maintain_column_froms=True)
        partial = partial.order_by(None).group_by(None).offset(None)
        partial._having_criteria = ()  # noqa: SLF001 -- there is no public name
        # Of plain rows, shards need not send those that will be dropped.
        partial._distinct = self._drops_equal_rows  # noqa: SLF001 -- nor for this
        partial._distinct_on = ()  # noqa: SLF001 -- nor for this
        partial._pre_columns_clause = None  # noqa: SLF001 -- nor for this
        return partial.group_by(*self._groups) if self._decomposed else partial

    def _is_of_a_window(self, part: visitors.ExternallyTraversible) -> bool:
        return id(part) in self._not_aggregates

    def _is_aggregate(self, part: visitors.ExternallyTraversible) -> bool:
        if self._is_of_a_window(part):
            return False
        if isinstance(part, FunctionFilter):
            return self._is_aggregate(part.func)
        if isinstance(part, WithinGroup | AggregateOrderBy):
            return self._is_aggregate(part.element)
        return isinstance(part, Function) and part.name.lower() in AGGREGATES

    def _add(self, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        """Let shards send an expression; return where it stands in what they send."""
        for known, place in self._known:
            if known.compare(expression):
                return place
        label = expression.label(f"p{len(self._sent)}")
        self._sent.append(label)
        place = column(label.name, expression.type)
        self._known.append((expression, place))
        return place

    def _add_group(self, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        place = self._add(expression)
        if not any(expression.compare(known) for known in self._groups):
            self._groups.append(expression)
        return place

    def _rewritten(self, clause: ColumnElement[Any]) -> ColumnElement[Any]:
        found = visitors.replacement_traverse(clause, {}, self._replacement)
        assert isinstance(found, ColumnElement)
        return found

    def _replacement(
        self,
        element: visitors.ExternallyTraversible,
        **_kw: Any,  # noqa: ANN401 -- as SQLAlchemy declares it
    ) -> ColumnElement[Any] | None:
        part = element
        if isinstance(part, BindParameter):
            return part
        if isinstance(part, ColumnElement):
            for clause, place in self._group_by:
                if part.compare(clause):
                    return place
        if self._is_aggregate(part):
            decomposed = self._decomposed
            return self._of_parts(part) if decomposed else self._over_rows(part)
        return self._place_of(part) if _is_column(part) else None

    def _place_of(self, part: ColumnClause[Any]) -> ColumnElement[Any]:
        if self._aggregated:
            raise UnmergeableQueryError(
                "a column that is not in GROUP BY", "add it there, or take its min()"
            )
        return self._add(part)

    def _of_parts(self, part: visitors.ExternallyTraversible) -> ColumnElement[Any]:
        return combined_aggregate(part, self._add, self._add_group)

    def _over_rows(self, part: visitors.ExternallyTraversible) -> ColumnElement[Any]:
        """Leave an aggregate as it is, over rows that the shards send."""

        def replacement(
            element: visitors.ExternallyTraversible,
            **_kw: Any,  # noqa: ANN401 -- as SQLAlchemy declares it
        ) -> ColumnElement[Any] | None:
            if isinstance(element, BindParameter):
                return element
            return self._add(element) if _is_column(element) else None

        found = visitors.replacement_traverse(part, {}, replacement)
        assert isinstance(found, ColumnElement)
        return found

    def _sorted(
        self,
        clause: ClauseElement,
        selected: Sequence[ColumnElement[Any]],
        outputs: Sequence[ColumnElement[Any]],
    ) -> ColumnElement[Any]:
        sort = sort_expression(clause)
        position = position_of(sort, selected)
        if position is not None:
            # The same object: its parameters would count as others, and DISTINCT would not know it.
            return _directed(outputs[position], sort)
        if isinstance(sort.expression, str):
            raise UnmergeableQueryError(f"ORDER BY {sort.expression!r}", "order by an expression")
        return _directed(self._rewritten(sort.expression), sort)


def _directed(expression: ColumnElement[Any], sort: SortExpression) -> ColumnElement[Any]:
    found = expression.desc() if sort.descending else expression.asc()
    match sort.nulls_first:
        case True:
            return found.nulls_first()
        case False:
            return found.nulls_last()
        case None:
            return found


def _is_column(part: visitors.ExternallyTraversible) -> TypeGuard[ColumnClause[Any]]:
    return isinstance(part, ColumnClause) and part.table is not None and not part.is_literal


def _nothing() -> Label[Any]:
    """A row without columns cannot be sent."""
    return literal_column("1").label("p0")
