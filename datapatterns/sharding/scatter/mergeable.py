"""Which parts of a SELECT can be merged exactly over several shards; all others are refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from sqlalchemy import (
    ColumnElement,
    Function,
    FunctionFilter,
    Label,
    Over,
    Select,
    WithinGroup,
    types,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import (
    AggregateOrderBy,
    BinaryExpression,
    ClauseElement,
    CollationClause,
    Grouping,
    TypeCoerce,
    UnaryExpression,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Subquery, Values
from sqlalchemy.types import TypeEngine

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.merging import Aggregate, OrderKey

AggregateName: TypeAlias = Aggregate | Literal["avg"]

# By name, for these names are PostgreSQL's; each is the same for a row wherever it lies.
_ROW_FUNCTIONS = frozenset((
    "abs", "ceil", "ceiling", "char_length", "coalesce", "concat", "date_part", "date_trunc",
    "floor", "greatest", "hash_bucket", "least", "left", "length", "lower", "ltrim", "mod",
    "nullif", "octet_length", "power", "replace", "right", "round", "rtrim", "sign", "split_part",
    "strpos", "substring", "trim", "trunc", "upper",
))  # fmt: skip
_AGGREGATES: dict[str, AggregateName] = {
    "avg": "avg",
    "bool_and": "bool_and",
    "bool_or": "bool_or",
    "count": "count",
    "max": "max",
    "min": "min",
    "sum": "sum",
}
# These need all rows of a group in one place.
_WHOLE_GROUP_AGGREGATES = frozenset((
    "array_agg", "jsonb_agg", "stddev", "stddev_pop", "stddev_samp", "string_agg", "var_pop",
    "var_samp", "variance",
))  # fmt: skip

# Exactly these classes: a subclass may compare otherwise, or change values on their way.
_INTEGERS = (types.SmallInteger, types.Integer, types.BigInteger)
_INTEGERS_SQL = (types.SMALLINT, types.INTEGER, types.BIGINT)
_DECIMALS = (types.Numeric, types.NUMERIC, types.DECIMAL)
_FLOATS = (types.Float, types.FLOAT, types.REAL, types.Double, types.DOUBLE, types.DOUBLE_PRECISION)
_SUMMABLE = frozenset((*_INTEGERS, *_INTEGERS_SQL, *_DECIMALS))
_ORDERABLE = _SUMMABLE.union(
    _FLOATS,
    (types.Boolean, types.BOOLEAN, types.Date, types.DATE, types.DateTime, types.TIMESTAMP),
    (postgresql.TIMESTAMP, types.Uuid, types.UUID, types.LargeBinary, postgresql.BYTEA),
)
_TEXTS = frozenset(
    (types.String, types.Text, types.Unicode, types.UnicodeText, types.VARCHAR, types.TEXT)
)


@dataclass(frozen=True, slots=True)
class AggregateCall:
    """One aggregate that a statement selects.

    Attributes:
        name: Its name.
        argument: What it is over.
        criterion: Its FILTER, if it has one.
    """

    name: AggregateName
    argument: ColumnElement[Any]
    criterion: ColumnElement[Any] | None

    def over(self, function: Function[Any]) -> ColumnElement[Any]:
        """Return another aggregate over the same rows."""
        return function if self.criterion is None else function.filter(self.criterion)


@dataclass(frozen=True, slots=True)
class SortExpression:
    """One part of an ORDER BY.

    Attributes:
        expression: What to order by, or the name of a selected column.
        descending: Whether large values come first.
        nulls_first: Whether NULL does; None as PostgreSQL decides.
    """

    expression: ColumnElement[Any] | str
    descending: bool
    nulls_first: bool | None

    def key(self, position: int, *, text: bool) -> OrderKey:
        """Return how to order merged rows by it, once it stands in a column of theirs."""
        nulls_first = self.descending if self.nulls_first is None else self.nulls_first
        return OrderKey(position, self.descending, nulls_first, text)


def check_mergeable_parts(statement: Select[*tuple[Any, ...]], *, whole_groups: bool) -> None:
    """Refuse what no merge makes exact.

    Args:
        statement: A statement for several shards.
        whole_groups: Whether each group lies on one shard, which can then finish it.

    Raises:
        UnmergeableQueryError: With the clause and the way out.
    """
    for clause, present in _clauses(statement, whole_groups=whole_groups):
        if present:
            raise UnmergeableQueryError(clause, "leave it out, or name the shard key")
    for part in visitors.iterate(statement):
        if part is not statement:
            _check_part(cast("ClauseElement", part), whole_groups=whole_groups)


def _clauses(
    statement: Select[*tuple[Any, ...]], *, whole_groups: bool
) -> Iterator[tuple[str, object]]:
    # SQLAlchemy has no public names for these; a test holds them to their meaning.
    yield "DISTINCT ON", statement._distinct_on  # noqa: SLF001
    yield "FETCH", statement._fetch_clause is not None  # noqa: SLF001
    yield "FOR UPDATE", statement._for_update_arg is not None  # noqa: SLF001
    yield "HAVING", statement._having_criteria and not whole_groups  # noqa: SLF001
    extended = (
        statement._pre_columns_clause,  # noqa: SLF001
        statement._post_select_clause,  # noqa: SLF001
        statement._post_criteria_clause,  # noqa: SLF001
        statement._post_body_clause,  # noqa: SLF001
    )
    # DISTINCT ON among others.
    yield "an extension of SELECT", any(part is not None for part in extended)
    yield "a prefix or suffix", statement._prefixes or statement._suffixes  # noqa: SLF001
    yield "WITH", statement._independent_ctes  # noqa: SLF001


def _check_part(part: ClauseElement, *, whole_groups: bool) -> None:
    if isinstance(part, Over):
        raise UnmergeableQueryError("a window function", "name the shard key")
    if isinstance(part, WithinGroup | AggregateOrderBy) and not whole_groups:
        raise UnmergeableQueryError("an ordered aggregate", "GROUP BY the shard key, or name it")
    if isinstance(part, Select | Subquery | Values):
        raise UnmergeableQueryError("a subquery", "join the table by the shard key, or name it")
    if isinstance(part, FunctionElement):
        _check_function(part, whole_groups=whole_groups)


def _check_function(function: FunctionElement[Any], *, whole_groups: bool) -> None:
    name = getattr(function, "name", type(function).__name__).lower()
    if name in _WHOLE_GROUP_AGGREGATES and not whole_groups:
        raise UnmergeableQueryError(f"{name}()", "GROUP BY the shard key, or name it")
    if name not in _ROW_FUNCTIONS | _AGGREGATES.keys() | _WHOLE_GROUP_AGGREGATES:
        raise UnmergeableQueryError(
            f"{name}()", "its answer may differ between shards; compute it before and pass a value"
        )


def aggregates_in(column: ClauseElement) -> bool:
    """Return whether any part of ``column`` is an aggregate."""
    return any(
        isinstance(part, Function)
        and (part.name.lower() in _AGGREGATES or part.name.lower() in _WHOLE_GROUP_AGGREGATES)
        for part in visitors.iterate(column)
    )


def aggregate_call(column: ColumnElement[Any]) -> AggregateCall | None:
    """Return the aggregate that ``column`` is, or None if it is something else.

    Raises:
        UnmergeableQueryError: The partial results of this aggregate cannot be merged.
    """
    function: ClauseElement = unlabelled(column)
    criterion = None
    if isinstance(function, FunctionFilter):
        criterion, function = function.criterion, function.func
    if not isinstance(function, Function) or function.name.lower() not in _AGGREGATES:
        return None
    name = _AGGREGATES[function.name.lower()]
    arguments = list(function.clauses)
    if len(arguments) != 1:
        raise UnmergeableQueryError(f"{name}() of several arguments", "give it one")
    argument = arguments[0]
    if isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op:
        raise UnmergeableQueryError(
            f"{name}(DISTINCT)", "GROUP BY the column and count the rows, or name the shard key"
        )
    _check_argument(name, argument)
    return AggregateCall(name, argument, criterion)


def _check_argument(name: AggregateName, argument: ColumnElement[Any]) -> None:
    if name in ("sum", "avg") and not (
        type(argument.type) in _SUMMABLE and getattr(argument.type, "asdecimal", True)
    ):
        raise UnmergeableQueryError(
            f"{name}() of {type(argument.type).__name__}",
            "cast its argument to Numeric, whose sums are exact",
        )
    if name in ("min", "max") and not _is_orderable(argument.type):
        raise UnmergeableQueryError(
            f"{name}() of {type(argument.type).__name__}", "cast it, or name the shard key"
        )


def check_identity(column: ColumnElement[Any], clause: str) -> None:
    """Refuse values that Python tells apart otherwise than PostgreSQL.

    Raises:
        UnmergeableQueryError: The column is of such a type.
    """
    type_ = unlabelled(column).type
    if type(type_) not in _TEXTS and not _is_orderable(type_):
        raise UnmergeableQueryError(
            f"{clause} of {type(type_).__name__}", "cast it to a plain type, or name the shard key"
        )


def order_key(sort: SortExpression, expression: ColumnElement[Any], position: int) -> OrderKey:
    """Return how to order merged rows by ``expression``, which stands at ``position``.

    Raises:
        UnmergeableQueryError: Python orders such values otherwise than PostgreSQL.
    """
    if _is_c_text(expression):
        return sort.key(position, text=True)
    if not _is_orderable(expression.type):
        raise UnmergeableQueryError(
            f"ORDER BY a {type(expression.type).__name__}",
            'order text by collate(column, "C"); cast other types, or name the shard key',
        )
    return sort.key(position, text=False)


def sort_expression(clause: ClauseElement) -> SortExpression:
    """Take one part of an ORDER BY apart."""
    descending, nulls_first = False, None
    while True:
        if isinstance(clause, UnaryExpression) and clause.modifier is operators.desc_op:
            descending = True
        elif isinstance(clause, UnaryExpression) and clause.modifier is operators.nulls_first_op:
            nulls_first = True
        elif isinstance(clause, UnaryExpression) and clause.modifier is operators.nulls_last_op:
            nulls_first = False
        elif (
            not (isinstance(clause, UnaryExpression) and clause.modifier is operators.asc_op)
            and type(clause).__visit_name__ != "label_reference"
        ):
            break
        clause = clause.element  # type: ignore[attr-defined]  # each of these wraps one
    if type(clause).__visit_name__ == "textual_label_reference":
        name: str = clause.element  # type: ignore[attr-defined]  # here it is the name
        return SortExpression(name, descending, nulls_first)
    assert isinstance(clause, ColumnElement)
    return SortExpression(unlabelled(clause), descending, nulls_first)


def unlabelled(clause: ClauseElement) -> ColumnElement[Any]:
    """Return the expression itself, without the name that it is selected under."""
    while isinstance(clause, Label | Grouping) or type(clause).__visit_name__ == "label_reference":
        clause = clause.element  # type: ignore[attr-defined]  # each of these wraps one
    assert isinstance(clause, ColumnElement)
    return clause


def _is_orderable(type_: TypeEngine[Any]) -> bool:
    return type(type_) in _ORDERABLE and getattr(type_, "as_uuid", True)


def _is_c_text(expression: ColumnElement[Any]) -> bool:
    if isinstance(expression, BinaryExpression) and expression.operator is operators.collate:
        collation = expression.right
        return isinstance(collation, CollationClause) and collation.collation == "C"
    # A collation that is written inside prevails over those of columns.
    if any(isinstance(part, CollationClause | TypeCoerce) for part in visitors.iterate(expression)):
        return False
    return type(expression.type) in _TEXTS and getattr(expression.type, "collation", None) == "C"
