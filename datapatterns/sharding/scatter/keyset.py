"""Pages that begin after a row instead of counting rows: as fast at any depth as the first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import (
    Alias,
    Column,
    ColumnElement,
    Connection,
    Float,
    Interval,
    Join,
    Row,
    Select,
    Table,
    and_,
    literal,
    or_,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy import tuple_ as row_of
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.orm import Session
from sqlalchemy.sql import coercions, roles, visitors

from datapatterns.errors import PageCursorError, UnmergeableQueryError
from datapatterns.sharding.scatter.answering import as_result
from datapatterns.sharding.scatter.mergeable import sort_expression
from datapatterns.sharding.scatter.page_cursors import cursor_of, values_of
from datapatterns.sharding.scatter.selected import (
    AnySelect,
    aggregates_in,
    selected_columns,
    windows_in,
)
from datapatterns.sharding.scatter.value_types import arrives_exactly

Columns = TypeVar("Columns", bound=tuple[Any, ...])

_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


@dataclass(frozen=True, slots=True)
class KeysetPage(Generic[Columns]):
    """Some rows, and where the next ones begin.

    Attributes:
        rows: The rows, in order.
        next: The cursor for what follows; None if nothing does.
    """

    rows: Sequence[Row[*tuple[Any, ...]]]
    next: str | None

    def scalars(self) -> list[Any]:
        """Return the first column, or the entities."""
        return [row[0] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Keyset(Generic[Columns]):
    """One page of a statement, to be read in any session or on any connection.

    Attributes:
        statement: What is executed: with the cursor's condition, the order, and one row more.
        size: How many rows a page has.
    """

    statement: AnySelect
    size: int
    _asked: AnySelect
    _order: str
    _width: int

    def read(self, session: Session | Connection) -> KeysetPage[Columns]:
        """Return the page's rows, with the cursor of the next page.

        Raises:
            PageCursorError: Rows on both sides of its end agree in all that orders them, so that
                some would be on no page. Add columns to ``by`` that tell them apart.
        """
        found = session.execute(self.statement).all()
        ends = [tuple(row[self._width :]) for row in found[self.size - 1 :]]
        has_more = len(found) > self.size
        if has_more and all(map(_are_equal, *ends)):
            raise PageCursorError("several rows agree in all that orders its pages")
        rows = as_result(self._asked, [row[: self._width] for row in found[: self.size]]).all()
        return KeysetPage(rows, cursor_of(self._order, ends[0]) if has_more else None)


def keyset(
    statement: Select[*tuple[Any, ...]],
    *,
    by: Sequence[Any],
    size: int,
    after: str | None = None,
) -> Keyset[Any]:
    """Return a page of ``statement``.

    Its rows come in the order of ``by``, from all shards if need be; each shard starts after the
    row at which the page before has ended, so a page costs the same at any depth. Rows that are
    written between two pages are on the next one if they belong there.

    Args:
        statement: What to read, without ORDER BY, LIMIT and OFFSET.
        by: NOT NULL columns, each as it is or with ``desc()``, that together tell all rows apart.
        size: How many rows a page has at most.
        after: The cursor of the page before; None for the first page.

    Raises:
        PageCursorError: ``after`` is no cursor of such pages, or ``by`` cannot order pages.
        UnmergeableQueryError: The statement has bounds, an order or groups of its own.
    """
    if size < 1:
        raise ValueError("size: a page has at least one row")
    _refuse_bounds(statement)
    sorts = [sort_expression(coercions.expect(roles.OrderByRole, each)) for each in by]
    columns = [_checked(sort.expression) for sort in sorts]
    if not columns:
        raise PageCursorError("nothing orders its pages")
    _refuse_missing(statement, columns)
    descending = [sort.descending for sort in sorts]
    order = ", ".join(
        f"{column} {column.type!r} {down}" for column, down in zip(columns, descending, strict=True)
    )
    width = len(statement.column_descriptions)
    found = statement.add_columns(
        *(column.label(f"keyset_{number}") for number, column in enumerate(columns))
    )
    if after is not None:
        values = values_of(order, after)
        found = found.where(_behind(columns, descending, values))
    directed = zip(columns, descending, strict=True)
    found = found.order_by(*(column.desc() if down else column.asc() for column, down in directed))
    return Keyset(found.limit(size + 1), size, statement, order, width)


def _refuse_bounds(statement: AnySelect) -> None:
    present = {
        "ORDER BY": statement._order_by_clauses,  # noqa: SLF001 -- there is no public name
        "LIMIT": statement._limit_clause is not None,  # noqa: SLF001 -- nor for this
        "OFFSET": statement._offset_clause is not None,  # noqa: SLF001 -- nor for this
        "FETCH": statement._fetch_clause is not None,  # noqa: SLF001 -- nor for this
        "DISTINCT": statement._distinct,  # noqa: SLF001 -- nor for this
        "GROUP BY": statement._group_by_clauses,  # noqa: SLF001 -- nor for this
        "HAVING": statement._having_criteria,  # noqa: SLF001 -- nor for this
    }
    for clause, is_there in present.items():
        if is_there:
            raise UnmergeableQueryError(f"{clause} of a page", "leave it out of what is paged")
    for column in selected_columns(statement):
        # After the first page they would not see the rows before it.
        if windows_in(column) or aggregates_in(column):
            raise UnmergeableQueryError(
                "a window function or aggregate of a page", "compute it in a subquery"
            )


def _checked(expression: object) -> Column[Any]:
    if not isinstance(expression, Column) or expression.nullable is not False:
        # A comparison with NULL is never true: its rows would be on no page but the first.
        raise PageCursorError(f"{expression} orders its pages, which is no NOT NULL column")
    used = expression.table
    if not isinstance(used.element if isinstance(used, Alias) else used, Table):
        raise PageCursorError(f"{expression} orders its pages, which a subquery may leave out")
    if isinstance(expression.type, Interval) or not arrives_exactly(expression):
        # To Python a year has 365 days, to PostgreSQL 360; what is rounded begins elsewhere.
        raise PageCursorError(f"{expression} orders its pages, which Python does not get exactly")
    return expression


def _are_equal(one: object, other: object) -> bool:
    """Return whether PostgreSQL takes two values of a column for equal, NaN and NaN too."""
    return one == other or (one != one and other != other)  # noqa: PLR0124 -- NaN is not


def _refuse_missing(statement: AnySelect, columns: Sequence[Column[Any]]) -> None:
    """Refuse columns of tables that an outer join may leave out, which are NULL then."""
    state = statement.compile(dialect=_DIALECT).compile_state
    sent = cast("AnySelect", getattr(state, "statement", statement))
    missing = {part for source in sent.get_final_froms() for part in _maybe_missing(source)}
    for column in columns:
        if column.table in missing:
            raise PageCursorError(f"{column} orders its pages, which an outer join may leave out")


def _maybe_missing(source: visitors.ExternallyTraversible) -> Iterator[object]:
    for part in visitors.iterate(source):
        if isinstance(part, Join) and (part.isouter or part.full):
            yield from visitors.iterate(part.right)
        if isinstance(part, Join) and part.full:
            yield from visitors.iterate(part.left)


def _behind(
    columns: Sequence[Column[Any]], descending: Sequence[bool], values: Sequence[Any]
) -> ColumnElement[bool]:
    """Return the condition of rows that come after those with ``values``."""
    bound = [_bound(column, value) for column, value in zip(columns, values, strict=True)]
    if len(set(descending)) == 1:
        mine, theirs = row_of(*columns), row_of(*bound)
        return mine < theirs if descending[0] else mine > theirs
    steps = []
    for place, column in enumerate(columns):
        same = [each == value for each, value in zip(columns[:place], bound, strict=False)]
        value = bound[place]
        steps.append(and_(*same, column < value if descending[place] else column > value))
    # The first column by itself, which an index can serve.
    first = columns[0] <= bound[0] if descending[0] else columns[0] >= bound[0]
    return and_(first, or_(*steps))


def _bound(column: Column[Any], value: object) -> ColumnElement[Any]:
    sent = literal(value, column.type)
    # Else the column would be compared as a float of more digits, which it does not equal.
    return sql_cast(sent, column.type) if isinstance(column.type, Float) else sent
