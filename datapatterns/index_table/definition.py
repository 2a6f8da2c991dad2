"""What an application declares of an index table, validated once."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, get_args

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnClause,
    ColumnElement,
    FromClause,
    Table,
    and_,
    case,
    column,
    select,
    table,
)
from sqlalchemy.exc import CompileError
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.visitors import iterate, replacement_traverse

from datapatterns.errors import IndexDefinitionError, IndexModeError
from datapatterns.index_table.statements import rendered
from datapatterns.sql.metadata import checked_schema

Indexable = ColumnElement[Any] | InstrumentedAttribute[Any]
"""A column or an expression over columns, of a Table or of a mapped class."""

IndexMode = Literal["local", "async", "reserve"]
"""How an index table is kept. ``local``: by triggers, in the transaction of every writer, beside
its rows. ``async``: through the change log, by a worker, after the writer's commit, beside its
rows. ``reserve``: sharded by its own key, which is claimed before a commit, and forgotten after
it."""

_NOT_UNIQUE = (
    "cannot be unique: when it finds out that two rows have one key, both have been committed; use"
    " mode='local', which refuses the second one, or declare it without unique="
)

BUCKETS = 1024
"""So many for the entries of an index over shards, unless it is declared: enough for hundreds."""

NAME_BYTES_MAX = 40
"""Names of an index's view, function and triggers are derived from its own; PostgreSQL cuts
names at 63 bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class IndexDefinition:
    """An index table as declared; two processes agree if their fingerprints do.

    Attributes:
        name: Also the name of the table, in the library's schema.
        base: The table whose rows are found.
        key: What rows are found by, in order, under the names of the index's columns.
        include: Further columns that index rows carry.
        where: Rows for which this isn't true are left out.
        unique: No two rows have the same key.
        schema: The library's schema.
        mode: How it is kept.
        chosen_because: Why that mode was chosen; None if it was declared.
        buckets: How many its entries are spread over, in mode ``reserve``.
    """

    name: str
    base: Table
    key: Mapping[str, ColumnElement[Any]]
    include: tuple[str, ...]
    where: ColumnElement[bool] | None
    unique: bool
    schema: str
    mode: str = "local"
    chosen_because: str | None = None
    buckets: int = BUCKETS

    @property
    def primary_key(self) -> tuple[str, ...]:
        """Names of the columns that identify a row of the base table."""
        return tuple(column.name for column in self.base.primary_key.columns)

    @property
    def entry_identity(self) -> tuple[str, ...]:
        """Names of the columns that identify an index row: key and primary key, each once."""
        return tuple(dict.fromkeys((*self.key, *self.primary_key)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the index table's columns: key, primary key, included, each once."""
        return tuple(dict.fromkeys((*self.entry_identity, *self.include)))

    @property
    def used_columns(self) -> frozenset[str]:
        """Names of the base table's columns that an index row depends on."""
        predicate = [] if self.where is None else [self.where]
        return frozenset(
            element.name
            for expression in (*self.projection(self.base).values(), *predicate)
            for element in _columns_in(expression)
        )

    def projection(self, rows: FromClause) -> dict[str, ColumnElement[Any]]:
        """Return the columns of an index row, computed from ``rows`` of the base table.

        A computed part of the key is NULL for a row that ``where`` leaves out.
        """
        return {name: self._computed(name, rows) for name in self.columns}

    def is_indexed(self, rows: FromClause) -> ColumnElement[bool]:
        """Return whether a row has an index row: no part of its key is NULL, and ``where``."""
        present = [self._computed(name, rows).is_not(None) for name in self.key]
        predicate = [] if self.where is None else [on_rows(self.where, rows)]
        return and_(*present, *predicate)

    def transition(self, name: str) -> FromClause:
        """Return rows of the base table as a trigger sees them under ``name``."""
        return table(name, *(column(own.name, own.type) for own in self.base.columns))

    def _computed(self, name: str, rows: FromClause) -> ColumnElement[Any]:
        own = self.key[name] if name in self.key else _own_column(self.base, name)
        computed = on_rows(own, rows)
        if self.where is None or isinstance(own, ColumnClause):
            return computed
        # PostgreSQL evaluates conditions in any order, but nothing in a CASE before its WHEN:
        # ``100 / x`` is computed only where ``x != 0`` has been found true.
        return case((on_rows(self.where, rows), computed))


@cache
def fingerprint(definition: IndexDefinition) -> str:
    """Return a digest of everything that decides what an index row holds."""
    described = {
        "base": definition.base.fullname,
        "key": {name: rendered(expression) for name, expression in definition.key.items()},
        "primary_key": definition.primary_key,
        "include": definition.include,
        "where": None if definition.where is None else rendered(definition.where),
        "unique": definition.unique,
    }
    # Of those that were there before there were other modes.
    if definition.mode != "local":
        described["mode"] = definition.mode
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def define(  # noqa: PLR0913 -- the declaration's vocabulary, all by keyword
    name: str,
    *,
    on: Sequence[Indexable],
    unique: bool,
    include: Sequence[Indexable],
    where: ColumnElement[bool] | None,
    mode: str | None,
    schema: str,
    buckets: int | None = None,
) -> IndexDefinition:
    """Return the definition of an index table.

    Raises:
        IndexDefinitionError: It names no column, columns of several tables, a table without
            primary key, or includes something that is no column.
        IndexModeError: There is no such mode, or it can't keep a unique index.
        SchemaNameError: ``schema`` cannot name the library's schema.
    """
    _check_name(name)
    if mode is not None and mode not in get_args(IndexMode):
        raise IndexModeError(name, mode=mode)
    if unique and mode == "async":
        raise IndexModeError(name, mode=mode, problem=_NOT_UNIQUE)
    key = [_expression(part) for part in on]
    expressions = key if where is None else [*key, where]
    _check_values(name, expressions)
    base = _base_table(name, expressions)
    chosen, reason = _choose_mode(base, unique=unique)
    definition = IndexDefinition(
        name=name,
        base=base,
        key=_named_key(name, key, base),
        include=tuple(_included_column(name, part, base) for part in include),
        where=where,
        unique=unique,
        schema=checked_schema(schema),
        mode=mode or chosen,
        chosen_because=None if mode else reason,
        buckets=BUCKETS if buckets is None else buckets,
    )
    if buckets is not None and definition.mode != "reserve":
        raise IndexDefinitionError(name, "only an index over shards has buckets: mode='reserve'")
    try:
        fingerprint(definition)
    except CompileError as error:
        raise IndexDefinitionError(name, f"PostgreSQL can't be told of it: {error}") from error
    return definition


def _choose_mode(base: Table, *, unique: bool) -> tuple[IndexMode, str]:
    """Return how an index is kept for which nobody has said so, and why."""
    if base.dialect_options["postgresql"]["partition_by"] is not None and not unique:
        return "async", (
            "the table is partitioned, and a partition that is attached later has no triggers;"
            " the change log notices that"
        )
    return "local", "rows and index rows are in one database"


def on_rows(expression: ColumnElement[Any], rows: FromClause) -> ColumnElement[Any]:
    """Return ``expression`` over the base table as one over ``rows``."""
    # Also takes the ORM's annotations off a mapped class's attributes.
    adapted = replacement_traverse(
        expression,
        {},
        lambda element, **_: (
            _own_column(rows, element.name)
            if isinstance(element, ColumnClause) and element.table is not None
            else None
        ),
    )
    return cast("ColumnElement[Any]", adapted)


def _own_column(rows: FromClause, name: str) -> ColumnElement[Any]:
    # A Table's collection goes by key, which an application may choose.
    return next(own for own in rows.c if own.name == name)


def _columns_in(expression: ColumnElement[Any]) -> list[ColumnClause[Any]]:
    return [
        element
        for element in iterate(expression)
        if isinstance(element, ColumnClause) and element.table is not None
    ]


def _check_name(name: str) -> None:
    encoded = name.encode(errors="replace")
    if not name or "\0" in name or len(encoded) > NAME_BYTES_MAX:
        raise IndexDefinitionError(name, f"its name must have 1 to {NAME_BYTES_MAX} bytes")
    if encoded.decode() != name:
        raise IndexDefinitionError(name, "its name holds half a surrogate pair")


def _expression(part: Indexable) -> ColumnElement[Any]:
    # select() turns attributes of mapped classes into columns.
    return select(part).selected_columns[0]


def _check_values(name: str, expressions: Sequence[ColumnElement[Any]]) -> None:
    for element in (part for expression in expressions for part in iterate(expression)):
        if isinstance(element, BindParameter) and element.required:
            raise IndexDefinitionError(name, f"its parameter {element.key!r} needs a value")


def _base_table(name: str, expressions: Sequence[ColumnElement[Any]]) -> Table:
    tables = {element.table for expression in expressions for element in _columns_in(expression)}
    if len(tables) != 1:
        raise IndexDefinitionError(name, "it must be declared on columns of exactly one table")
    base = tables.pop()
    if not isinstance(base, Table):
        raise IndexDefinitionError(name, "it must be declared on a table, not on a subquery")
    if not base.primary_key.columns:
        raise IndexDefinitionError(name, f"{base.fullname} has no primary key; declare one")
    return base


def _named_key(
    name: str, key: Sequence[ColumnElement[Any]], base: Table
) -> dict[str, ColumnElement[Any]]:
    named: dict[str, ColumnElement[Any]] = {}
    taken = {own.name for own in base.columns}
    for ordinal, expression in enumerate(key, start=1):
        if not _columns_in(expression):
            raise IndexDefinitionError(name, f"{rendered(expression)} is the same for all rows")
        label = f"key_{ordinal}"
        while label in taken:
            label += "_"
        own = expression.name if isinstance(expression, Column) else label
        if own in named:
            raise IndexDefinitionError(name, f"{own} occurs twice in its key")
        named[own] = expression
    return named


def _included_column(name: str, part: Indexable, base: Table) -> str:
    expression = _expression(part)
    if not isinstance(expression, Column) or expression.table is not base:
        raise IndexDefinitionError(name, f"only columns of {base.fullname} can be included")
    return expression.name
