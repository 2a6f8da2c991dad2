"""What an application declares: rows of one table refer to rows of another, on whatever shard."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import QueryableAttribute
from sqlalchemy.types import TypeEngine

from datapatterns.errors import ReferenceDefinitionError

Check = Literal["on_write", "audit"]
"""When a reference is checked: as rows are written, or by `ShardCluster.audit_references` alone."""

Values: TypeAlias = tuple[Any, ...]
"""What a row has in the columns of a reference."""

Named: TypeAlias = QueryableAttribute[Any] | Column[Any]

_TYPES: Final = {
    *(SmallInteger, Integer, BigInteger, String, Text, Uuid, Date, DateTime, LargeBinary),
    *(postgresql.UUID, postgresql.BYTEA, postgresql.TIMESTAMP),
}
"""Of which Python and PostgreSQL agree on what is equal."""

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


@dataclass(frozen=True, slots=True, init=False, eq=False)
class ShardForeignKey:
    """Rows of one table refer to rows of another, which may lie on another shard.

    As a foreign key does: a row with NULL in one of its columns refers to nothing. Where both rows
    lie on one shard whatever happens, a ``ForeignKey`` does it better.

    Attributes:
        child: The columns that refer.
        parent: The columns that they refer to: the primary key, or another unique one, with the
            shard key in it.
        check: ``on_write`` keeps rows from referring to what is not there, and what is referred to
            from going; ``audit`` only lets `ShardCluster.audit_references` look.
        name: What errors and reports call it.
    """

    child: tuple[Column[Any], ...]
    parent: tuple[Column[Any], ...]
    check: Check
    name: str

    def __init__(
        self,
        child: Named | Sequence[Named],
        parent: Named | Sequence[Named],
        *,
        check: Check,
        name: str | None = None,
    ) -> None:
        """Declare a reference.

        Args:
            child: A column, or several in the order of those that they refer to.
            parent: A column, or several.
            check: When to look.
            name: What to call it; the table and its columns unless it is said.

        Raises:
            ReferenceDefinitionError: No such reference can be checked.
            ValueError: ``check`` is none of those that there are.
        """
        if check not in get_args(Check):
            raise ValueError(f"check is one of {get_args(Check)}, not {check!r}")
        columns, referred = _columns(child), _columns(parent)
        found = name or "_".join([columns[0].table.name, *(column.name for column in columns)])
        set_value = object.__setattr__
        set_value(self, "child", columns)
        set_value(self, "parent", referred)
        set_value(self, "check", check)
        set_value(self, "name", found)
        _check_columns(self)
        if check == "on_write":
            _check_writes(self)

    @property
    def child_table(self) -> Table:
        """Return the table whose rows refer."""
        return _table(self.child)

    @property
    def parent_table(self) -> Table:
        """Return the table whose rows are referred to."""
        return _table(self.parent)

    def refuse(self, reason: str, advice: str) -> ReferenceDefinitionError:
        """Return the error that says what is wrong with the declaration."""
        return ReferenceDefinitionError(self.name, reason, advice)


def _columns(named: Named | Sequence[Named]) -> tuple[Column[Any], ...]:
    each: Iterable[Named] = (
        (named,) if isinstance(named, QueryableAttribute | Column) else tuple(named)
    )
    return tuple(_column(one) for one in each)


def _column(named: Named) -> Column[Any]:
    if isinstance(named, Column) and isinstance(named.table, Table):
        return named
    property_ = getattr(named, "property", None)
    columns: Sequence[object] = getattr(property_, "columns", ())
    if len(columns) == 1:
        (column,) = columns
        if isinstance(column, Column) and isinstance(column.table, Table):
            return column
    raise TypeError(f"{named!r} is no column of a table, nor an attribute that stands for one")


def _table(columns: Sequence[Column[Any]]) -> Table:
    table = columns[0].table
    assert isinstance(table, Table)
    return table


def _check_columns(reference: ShardForeignKey) -> None:
    child, parent = reference.child, reference.parent
    if len(child) != len(parent) or len({*child}) != len(child) or len({*parent}) != len(parent):
        raise reference.refuse(
            f"{len(child)} columns refer to {len(parent)}", "name a column for each, once"
        )
    for columns in child, parent:
        if any(column.table is not columns[0].table for column in columns):
            raise reference.refuse("its columns are of several tables", "name those of one")
    for column, referred in zip(child, parent, strict=True):
        _check_types(reference, column, referred)
    names = {column.name for column in parent}
    if names not in _uniques(reference.parent_table):
        raise reference.refuse(
            f"{', '.join(sorted(names))} of {reference.parent_table.name} is not declared unique",
            "refer to the primary key, or to a UNIQUE constraint with the shard key in it",
        )


def _check_types(reference: ShardForeignKey, column: Column[Any], referred: Column[Any]) -> None:
    if type(referred.type) not in _TYPES or getattr(referred.type, "native_uuid", True) is False:
        raise reference.refuse(
            f"{referred.name} is {type(referred.type).__name__}, of which equality is not plain",
            "refer by integers, text, uuid, dates or bytes, of SQLAlchemy's own types",
        )
    mine, theirs = _spelled(column.type), _spelled(referred.type)
    if type(column.type) is not type(referred.type) or mine != theirs:
        raise reference.refuse(
            f"{column.name} is {mine}, {referred.name} is {theirs}", "give both the same type"
        )


def _spelled(type_: TypeEngine[Any]) -> str:
    as_uuid = "" if getattr(type_, "as_uuid", True) else " as text"
    return type_.compile(dialect=_DIALECT) + as_uuid


def _uniques(table: Table) -> list[set[str]]:
    found = [{column.name for column in table.primary_key.columns}]
    found += [
        {column.name for column in each.columns}
        for each in table.constraints
        if isinstance(each, UniqueConstraint)
    ]
    found += [
        {column.name for column in index.columns}
        for index in table.indexes
        # A foreign key could not refer to others either, and their UPDATE locks less.
        if index.unique
        and index.dialect_options["postgresql"]["where"] is None
        and len(index.columns) == len(index.expressions)
    ]
    return found


def _check_writes(reference: ShardForeignKey) -> None:
    """Refuse what lets rows go, or refer to others, without any statement that names them."""
    for column in reference.child:
        if column.computed is not None:
            raise reference.refuse(
                f"{column.name} is computed by the server", 'use check="audit", or store its value'
            )
    referring, referred = {*reference.child}, {*reference.parent}
    for key in reference.parent_table.foreign_key_constraints:
        changes = _acts(key.onupdate) or _acts(key.ondelete)
        if _cascades(key.ondelete) or (changes and referred.intersection(key.columns)):
            raise reference.refuse(
                f"the server deletes or changes rows of {reference.parent_table.name} by itself,"
                " as they refer to others",
                'let that foreign key have no ON DELETE or ON UPDATE action, or use check="audit"',
            )
    for key in reference.child_table.foreign_key_constraints:
        changes = _cascades(key.onupdate) or _defaults(key.onupdate) or _defaults(key.ondelete)
        if changes and referring.intersection(key.columns):
            raise reference.refuse(
                f"the server changes its columns in {reference.child_table.name} by itself",
                'let that foreign key have no ON UPDATE or SET DEFAULT, or use check="audit"',
            )


def _acts(action: str | None) -> bool:
    return (action or "NO ACTION").upper() not in {"NO ACTION", "RESTRICT"}


def _cascades(action: str | None) -> bool:
    return (action or "").upper() == "CASCADE"


def _defaults(action: str | None) -> bool:
    return (action or "").upper().startswith("SET DEFAULT")
