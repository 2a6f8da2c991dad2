"""What nobody can merge exactly over several shards: refused by its name, with the way out."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnClause, ColumnElement, Function, Over, Select, WithinGroup, types
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql.ext import DistinctOnClause
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import AggregateOrderBy, UnaryExpression
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Subquery, Values

from datapatterns.errors import UnmergeableQueryError
from datapatterns.sharding.scatter.value_types import SUMMABLE, contains_floats

# By name, for these names are PostgreSQL's; each is the same for a row wherever it lies.
ROW_FUNCTIONS = frozenset((
    "abs", "ceil", "ceiling", "char_length", "coalesce", "concat", "date_part", "date_trunc",
    "floor", "greatest", "hash_bucket", "least", "left", "length", "lower", "ltrim", "mod",
    "nullif", "octet_length", "power", "replace", "right", "round", "rtrim", "sign", "split_part",
    "strpos", "substring", "trim", "trunc", "upper",
))  # fmt: skip
SPREAD = frozenset((
    "stddev", "stddev_pop", "stddev_samp", "var_pop", "var_samp", "variance",
))  # fmt: skip
_BY_ORDER = frozenset((
    "array_agg", "json_agg", "json_object_agg", "jsonb_agg", "jsonb_object_agg", "string_agg",
))  # fmt: skip
AGGREGATES = frozenset((
    "avg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "count", "every", "max", "min",
    "mode", "percentile_cont", "percentile_disc", "sum", *SPREAD, *_BY_ORDER,
))  # fmt: skip
WINDOW_FUNCTIONS = frozenset((
    "cume_dist", "dense_rank", "first_value", "lag", "last_value", "lead", "nth_value", "ntile",
    "percent_rank", "rank", "row_number",
))  # fmt: skip
# Of intervals too: their parts are whole numbers.
_ADDABLE = SUMMABLE.union((types.Interval, postgresql.INTERVAL))


def refuse_what_nobody_merges(statement: Select[*tuple[Any, ...]], *, whole_groups: bool) -> None:
    """Refuse what neither Python nor PostgreSQL can make exact from several answers.

    Args:
        statement: A statement for several shards.
        whole_groups: Whether each group lies on one shard, which can then finish it.

    Raises:
        UnmergeableQueryError: With the clause and the way out.
    """
    for clause, present in _clauses(statement):
        if present:
            raise UnmergeableQueryError(clause, "leave it out, or name the shard key")
    arguments = _arguments(statement)
    ordered = {id(inner) for part in visitors.iterate(statement) for inner in _ordered(part)}
    for part in visitors.iterate(statement):
        if isinstance(part, Select | Subquery | Values) and part is not statement:
            raise UnmergeableQueryError("a subquery", "join the table by the shard key, or name it")
        if _is_distinct(part) and id(part) not in arguments:
            raise UnmergeableQueryError("distinct() of one column", "say select().distinct()")
        if isinstance(part, FunctionElement):
            _check_function(part)
            if not whole_groups:
                _check_order_of_rows(part, is_ordered=id(part) in ordered)


def _clauses(statement: Select[*tuple[Any, ...]]) -> Iterator[tuple[str, object]]:
    # SQLAlchemy has no public names for these; a test holds them to their meaning.
    yield "FETCH", statement._fetch_clause is not None  # noqa: SLF001
    yield "FOR UPDATE", statement._for_update_arg is not None  # noqa: SLF001
    extended = (
        statement._pre_columns_clause,  # noqa: SLF001
        statement._post_select_clause,  # noqa: SLF001
        statement._post_criteria_clause,  # noqa: SLF001
        statement._post_body_clause,  # noqa: SLF001
    )
    known = (None if isinstance(part, DistinctOnClause) else part for part in extended)
    yield "an extension of SELECT", any(part is not None for part in known)
    yield "a prefix or suffix", statement._prefixes or statement._suffixes  # noqa: SLF001
    yield "WITH", statement._independent_ctes  # noqa: SLF001
    # Nobody says how many columns it has.
    yield "a *", any(_is_star(column) for column in statement.selected_columns)


def _is_star(column: object) -> bool:
    return isinstance(column, ColumnClause) and column.is_literal and column.name == "*"


def _ordered(part: visitors.ExternallyTraversible) -> Iterator[object]:
    """Give the aggregates whose rows are put in order: by an ORDER BY, or by DISTINCT."""
    if isinstance(part, AggregateOrderBy | WithinGroup):
        yield part.element
    if isinstance(part, Over) and part.order_by is not None:
        yield part.element
    arguments = part.clauses if isinstance(part, Function) else ()
    if any(isinstance(each, aggregate_order_by) or _is_distinct(each) for each in arguments):
        yield part


def _arguments(statement: Select[*tuple[Any, ...]]) -> frozenset[int]:
    functions = [part for part in visitors.iterate(statement) if isinstance(part, Function)]
    return frozenset(id(each) for function in functions for each in function.clauses)


def _is_distinct(argument: visitors.ExternallyTraversible) -> bool:
    return isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op


def name_of(function: FunctionElement[Any]) -> str:
    """Return the name that PostgreSQL has for a function."""
    return str(getattr(function, "name", type(function).__name__)).lower()


def _check_function(function: FunctionElement[Any]) -> None:
    name = name_of(function)
    if name not in ROW_FUNCTIONS | AGGREGATES | WINDOW_FUNCTIONS:
        raise UnmergeableQueryError(
            f"{name}()", "its answer may differ between shards; compute it before and pass a value"
        )
    if getattr(function, "packagenames", ()):
        raise UnmergeableQueryError(f"{name}() of a schema", "name one of PostgreSQL's own")


def _check_order_of_rows(function: FunctionElement[Any], *, is_ordered: bool) -> None:
    """Refuse aggregates whose result depends on the order of rows, which nobody has said."""
    name = name_of(function)
    if name in _BY_ORDER and not is_ordered:
        raise UnmergeableQueryError(
            f"{name}() without an order", "say aggregate_order_by(), or GROUP BY the shard key"
        )
    if name in SPREAD or name in {"sum", "avg"}:
        (argument,) = function.clauses
        _check_exact(name, argument)


def _check_exact(name: str, argument: ColumnElement[Any]) -> None:
    type_ = argument.type
    exact = SUMMABLE if name in SPREAD else _ADDABLE
    rounded = not getattr(type_, "asdecimal", True) or contains_floats(argument)
    if type(type_) not in exact or rounded:
        # A sum of floats depends on the order of adding.
        raise UnmergeableQueryError(
            f"{name}() of {type(type_).__name__}",
            "cast its argument to Numeric, whose sums are exact",
        )
