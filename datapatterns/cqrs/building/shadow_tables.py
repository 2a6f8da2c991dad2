"""The tables that a version is built in: those of its mapped classes, under other names.

Checks and foreign keys have the names that they are to keep, for such a name is one of its table.
Those of indexes are names of the schema, which the live table has; so they get others until the
version is promoted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    CheckConstraint,
    Connection,
    Constraint,
    ForeignKeyConstraint,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    quoted_name,
)
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.schema import AddConstraint, CreateIndex, CreateTable, ExecutableDDLElement

from datapatterns.cqrs.building.names import default_name
from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.cqrs.tables.versions import shadow_name

_DIALECT: Final[PGDialect] = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_PREPARER: Final = _DIALECT.identifier_preparer


@dataclass(frozen=True, slots=True)
class ShadowTable:
    """One table of a version that is not live.

    Attributes:
        live: The mapped table.
        table: Its copy under another name.
        keys: What makes its primary key, the uniques and the exclusions.
        indexes: What makes its other indexes.
        names: What its indexes are to be called once it is live, by what they are called.
    """

    live: Table
    table: Table
    keys: tuple[ExecutableDDLElement, ...]
    indexes: tuple[ExecutableDDLElement, ...]
    names: Mapping[str, str]

    @property
    def creation(self) -> CreateTable:
        """What makes the table without keys, indexes and foreign keys: rows come first."""
        return CreateTable(self.table, include_foreign_key_constraints=())

    def add_keys(self, conn: Connection) -> None:
        """Add the primary key, the uniques and the exclusions."""
        for key in self.keys:
            conn.execute(key)

    def add_indexes(self, conn: Connection) -> None:
        """Add the other indexes."""
        for index in self.indexes:
            conn.execute(index)


def shadow_tables(projection: type[TableProjection]) -> list[ShadowTable]:
    """Return the tables of this version while it is not live, in their order."""
    models = read_models_of(projection).values()
    return [_shadow_of(model.table, projection.version) for model in models]


def foreign_keys(shadows: Iterable[ShadowTable]) -> list[AddConstraint]:
    """Return what adds the foreign keys: to tables of the same version, and to those of others."""
    shadows = list(shadows)
    twins = {shadow.live: shadow.table for shadow in shadows}
    return [
        AddConstraint(_foreign_key(constraint, shadow, twins))
        for shadow in shadows
        for constraint in sorted(shadow.live.foreign_key_constraints, key=_columns_of)
    ]


def _shadow_of(live: Table, version: int) -> ShadowTable:
    copy = live.to_metadata(MetaData(naming_convention=live.metadata.naming_convention))
    names: dict[str, str] = {}
    keys = []
    for constraint in sorted(copy.constraints, key=_by_kind):
        if isinstance(constraint, CheckConstraint | ForeignKeyConstraint):
            continue
        if isinstance(constraint, PrimaryKeyConstraint) and not list(constraint.columns):
            continue
        name = _name_of(constraint, live)
        called = shadow_name(_whole_name(constraint, live) or name, version)
        constraint.name = quoted_name(called, quote=None)
        names[called] = name
        keys.append(AddConstraint(constraint))
    indexes = sorted(copy.indexes, key=_index_name)
    for index in indexes:
        name = _index_name(index)
        called = shadow_name(name, version)
        index.name = quoted_name(called, quote=None)
        names[called] = name
    # Not before all names are known: conventions make them of the table's.
    copy.name = shadow_name(live.name, version)
    return ShadowTable(live, copy, tuple(keys), tuple(map(CreateIndex, indexes)), names)


def _by_kind(constraint: Constraint) -> tuple[bool, str]:
    return not isinstance(constraint, PrimaryKeyConstraint), _columns_of(constraint)


def _columns_of(constraint: Constraint) -> str:
    columns: Iterable[Any] = getattr(constraint, "columns", ())
    return "_".join(column.name for column in columns)


def _name_of(constraint: Constraint, live: Table) -> str:
    if isinstance(constraint.name, str):
        return _unquoted(_PREPARER.format_constraint(constraint))
    if isinstance(constraint, PrimaryKeyConstraint):
        return default_name(live.name, None, "pkey")
    columns = _columns_of(constraint)
    if isinstance(constraint, ForeignKeyConstraint):
        return default_name(live.name, columns, "fkey")
    label = "key" if isinstance(constraint, UniqueConstraint) else "excl"
    return default_name(live.name, columns, label)


def _whole_name(constraint: Constraint, live: Table) -> str | None:
    # Cut, the names that nobody has given could be the same for two tables.
    if isinstance(constraint.name, str):
        return None
    if isinstance(constraint, PrimaryKeyConstraint):
        return f"{live.name}_pkey"
    label = "key" if isinstance(constraint, UniqueConstraint) else "excl"
    return f"{live.name}_{_columns_of(constraint)}_{label}"


def _index_name(index: Index) -> str:
    return _unquoted(_PREPARER.format_index(index))


def _unquoted(name: str | None) -> str:
    assert name is not None
    if name.startswith('"'):
        name = name[1:-1].replace('""', '"')
    return name.replace("%%", "%")  # doubled for the driver


def _foreign_key(
    constraint: ForeignKeyConstraint, shadow: ShadowTable, twins: Mapping[Table, Table]
) -> ForeignKeyConstraint:
    referred = [element.column for element in constraint.elements]
    owner = twins.get(constraint.referred_table, constraint.referred_table)
    twin = ForeignKeyConstraint(
        [column.name for column in constraint.columns],
        [owner.c[column.name] for column in referred],
        name=_name_of(constraint, shadow.live),
        onupdate=constraint.onupdate,
        ondelete=constraint.ondelete,
        deferrable=constraint.deferrable,
        initially=constraint.initially,
        match=constraint.match,
        **constraint.dialect_kwargs,
    )
    shadow.table.append_constraint(twin)
    return twin
