"""Ask the server what a query depends on besides its tables, by the rule of its plain view."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg import sql
from sqlalchemy import Connection, Row, ScalarSelect, select, text
from sqlalchemy.dialects.postgresql import JSONB

from datapatterns.errors import ViewDefinitionError
from datapatterns.sql.stored_rules import functions_in, stored_rule

_BASES = """
SELECT coalesce(jsonb_agg(jsonb_build_array(schema, name, columns) ORDER BY schema, name), '[]')
FROM (
    SELECT n.nspname AS schema, c.relname AS name,
           coalesce(jsonb_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.attname IS NOT NULL),
                    '[]') AS columns
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
     AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> r.ev_class
    JOIN pg_catalog.pg_class c ON c.oid = d.refobjid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                                       AND d.refobjsubid > 0
    WHERE r.ev_class = to_regclass(:definition)
    GROUP BY n.nspname, c.relname
) AS base
"""

_ORDER_FREE = frozenset({
    "avg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "count", "every", "max", "min",
    "percentile_cont", "percentile_disc", "range_agg", "range_intersect_agg", "stddev",
    "stddev_pop", "stddev_samp", "sum", "var_pop", "var_samp", "variance",
})  # fmt: skip
_ROUNDED = frozenset({
    "avg", "stddev", "stddev_pop", "stddev_samp", "sum", "var_pop", "var_samp", "variance",
})  # fmt: skip


class _Clause(NamedTuple):
    pattern: re.Pattern[str]
    clause: str
    advice: str


_CLAUSES = [
    _Clause(
        re.compile(r":limit(?:Count|Offset) \{"),
        "LIMIT or OFFSET",
        "which rows it keeps is not certain; leave it to the reader",
    ),
    _Clause(
        re.compile(r":hasDistinctOn true"),
        "DISTINCT ON",
        "which row it keeps is not certain; group, with min() or max()",
    ),
    _Clause(
        re.compile(r"\{WINDOWFUNC "),
        "a window function",
        "rows that tie have no certain order; leave it to the reader",
    ),
    _Clause(
        re.compile(r"\{(?:SQLVALUEFUNCTION|NEXTVALUEEXPR|CURRENTOFEXPR) "),
        "the current time or user",
        "no change would say that it has passed; leave it to the reader",
    ),
    _Clause(re.compile(r"\{TABLESAMPLECLAUSE "), "TABLESAMPLE", "leave it to the reader"),
    _Clause(re.compile(r"\{ROWMARKCLAUSE "), "FOR UPDATE or FOR SHARE", "a view locks no rows"),
    _Clause(
        re.compile(r"\{(?:XMLEXPR|JSONCONSTRUCTOREXPR|JSONEXPR|JSONISPREDICATE) "),
        "an XML or SQL/JSON expression",
        "leave it to the reader",
    ),
    _Clause(
        re.compile(r"\{VAR :varno \d+ :varattno 0 "),
        "a whole row as a value",
        "name its columns",
    ),
    _Clause(
        re.compile(r"\{VAR :varno \d+ :varattno -\d"),
        "a system column",
        "it may change while no value does; leave it to the reader",
    ),
]


@dataclass(frozen=True, slots=True)
class Base:
    """A table that a query reads, and the columns that it reads."""

    schema: str
    name: str
    columns: tuple[str, ...]

    @property
    def full_name(self) -> str:
        """Return the table's name as SQL writes it."""
        return sql.Identifier(self.schema, self.name).as_string(None)


def bases_of(definition: str) -> ScalarSelect[Any]:
    """Return an expression for what `as_bases` reads: the tables below a plain view.

    None of them if there is no such view, as after DROP TABLE ... CASCADE.
    """
    return text(_BASES).bindparams(definition=definition).columns(bases=JSONB).scalar_subquery()


def as_bases(found: Sequence[tuple[str, str, Sequence[str]]]) -> list[Base]:
    """Return the tables that `bases_of` has found, in the order of their names."""
    return [Base(schema, name, tuple(columns)) for schema, name, columns in found]


def read_bases(conn: Connection, definition: str) -> list[Base]:
    """Return the tables below the plain view ``definition``, in the order of their names."""
    return as_bases(conn.execute(select(bases_of(definition))).scalar_one())


def require_determinism(conn: Connection, view: str, definition: str) -> None:
    """Let only queries through that give the same rows whenever the tables hold the same.

    Args:
        conn: A connection in a transaction.
        view: The view's name, for the message.
        definition: The plain view of the query, as SQL writes its name.

    Raises:
        ViewDefinitionError: A clause depends on something else; it is named.
    """
    rule = stored_rule(conn, definition)
    for pattern, clause, advice in _CLAUSES:
        if pattern.search(rule):
            raise ViewDefinitionError(view, clause=clause, advice=advice)
    for function in functions_in(conn, rule):
        for objection, way_out in _objections(function):
            raise ViewDefinitionError(view, clause=objection, advice=way_out)


def _objections(function: Row[Any]) -> Iterator[tuple[str, str]]:
    name = function.name
    if function.volatility == "v":
        yield f"the volatile function {name}()", "store its result in a column"
    if function.volatility == "s":
        yield (
            f"{name}(), which depends on the time or on settings",
            "use an immutable form, such as AT TIME ZONE with a fixed zone, or store its result",
        )
    if function.is_aggregate and not (function.is_builtin and name in _ORDER_FREE):
        yield (
            f"the aggregate {name}(), which may depend on the order of rows",
            "leave it to the reader",
        )
    if function.is_aggregate and name in _ROUNDED and function.takes_floats:
        yield (
            f"{name}() of floating-point numbers, which depends on the order of rows",
            "cast to numeric first",
        )
