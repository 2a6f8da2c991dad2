"""A read model in a table: read the rows that a page concerns, write them all at once."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from msgspec import defstruct
from msgspec.structs import astuple
from sqlalchemy import ARRAY, Column, Connection, Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from datapatterns.cqrs.definition import TableProjection
from datapatterns.cqrs.tables.folding import Rows
from datapatterns.cqrs.tables.row_statements import (
    delete_statement,
    find,
    insert_statement,
    send,
    undecorated,
    upsert_statement,
)
from datapatterns.errors import ProjectionDefinitionError, ReadModelKeyError
from datapatterns.sql.metadata import declared_once


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a read model, and what it is before anything happened."""

    attribute: str
    column: Column[Any]
    initial: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A table whose rows are folded from events.

    Attributes:
        name: Whose read model it is, for messages.
        table: Where its rows are; of a version that is not live, a table beside the live one.
        fields: The key's first, in its order.
        key_length: How many of the fields are the key.
        row_class: A plain class with the attributes; the mapped one would cost several times as
            much, and its defaults would be missing until a flush.
    """

    name: str
    table: Table
    fields: tuple[Field, ...]
    key_length: int
    row_class: Callable[..., Any]

    @property
    def columns(self) -> tuple[Column[Any], ...]:
        """The columns of all fields."""
        return tuple(field.column for field in self.fields)

    @property
    def key_columns(self) -> tuple[Column[Any], ...]:
        """The columns of the primary key."""
        return self.columns[: self.key_length]

    def in_table(self, table: Table) -> "ReadModel":
        """Return the same read model in another table, which has columns of the same names."""
        fields = tuple(
            Field(field.attribute, table.c[field.column.name], field.initial)
            for field in self.fields
        )
        return ReadModel(self.name, table, fields, self.key_length, self.row_class)

    def new_row(self, key: Hashable) -> Any:  # noqa: ANN401 -- has the mapped class's attributes
        """Return the row that ``key`` has before anything happened."""
        rest = [field.initial() for field in self.fields[self.key_length :]]
        return self.row_class(*self._parts(key), *rest)

    def fetch(self, conn: Connection, keys: Iterable[Hashable]) -> Rows:
        """Return the rows that exist among ``keys``.

        Raises:
            ReadModelKeyError: A key does not have the shape of the primary key, or is equal to
                a stored one for the database but not for Python, which would then count twice.
        """
        wanted = dict.fromkeys(keys)
        if not wanted:
            return {}
        make, length = self.row_class, self.key_length
        parts: Iterable[Iterable[Any]] = (
            [wanted] if length == 1 else zip(*map(self._parts, wanted), strict=True)
        )
        found = find(conn, self.table, self.columns, length, parts)
        rows: Rows = (
            {row[0]: make(*row) for row in found}
            if length == 1
            else {tuple(row[:length]): make(*row) for row in found}
        )
        if strange := rows.keys() - wanted.keys():
            raise ReadModelKeyError(
                self.name, f"a stored key comes back as {_shape(next(iter(strange)))}"
            )
        return rows

    def delete(self, conn: Connection, rows: Rows) -> None:
        """Delete those of ``rows`` that are None, in one statement."""
        gone = [self._parts(key) for key, row in rows.items() if row is None]
        if gone:
            statement = delete_statement(self.table, self.key_columns)
            send(conn, statement, self.key_columns, zip(*gone, strict=True))

    def insert_new(self, conn: Connection, rows: Rows, there: Collection[Hashable]) -> Rows:
        """Store those of ``rows`` that are not ``there``, in one statement; return the others.

        Raises:
            ReadModelKeyError: One is there after all, by a key that the database finds equal; or
                a handler has changed the key of its row.
        """
        new = list(self.stored({key: row for key, row in rows.items() if key not in there}))
        if not new:
            return rows
        statement = insert_statement(self.table, self.columns, self.key_length)
        if send(conn, statement, self.columns, zip(*new, strict=True)).rowcount < len(new):
            raise ReadModelKeyError(
                self.name, "two keys are equal to the database that are not to Python"
            )
        return {key: row for key, row in rows.items() if key in there}

    def upsert(self, conn: Connection, rows: Rows) -> None:
        """Store those of ``rows`` that are there, in one statement.

        Raises:
            ReadModelKeyError: A handler has changed the key of its row.
        """
        if kept := list(self.stored(rows)):
            statement = upsert_statement(self.table, self.columns, self.key_length)
            send(conn, statement, self.columns, zip(*kept, strict=True))

    def stored(self, rows: Rows) -> Iterator[tuple[Any, ...]]:
        """Yield the values of those of ``rows`` that are there, in the order of the columns.

        Raises:
            ReadModelKeyError: A handler has changed the key of its row.
        """
        for key, row in rows.items():
            if row is None:
                continue
            stored: tuple[Any, ...] = astuple(row)
            if self._key(stored) != key:
                raise ReadModelKeyError(self.name, "a handler changed the key of its row")
            yield stored

    def _key(self, row: Sequence[Any]) -> Hashable:
        return row[0] if self.key_length == 1 else tuple(row[: self.key_length])

    def _parts(self, key: Hashable) -> tuple[Any, ...]:
        if self.key_length == 1:
            return (key,)
        if not isinstance(key, tuple) or len(key) != self.key_length:
            raise ReadModelKeyError(
                self.name, f"its key has {self.key_length} columns, not {_shape(key)}"
            )
        return key


ReadModels = Mapping[type, ReadModel]
"""The read models of a projection by the mapped classes of its tables, in their order."""


@declared_once
def read_models_of(projection: type[TableProjection]) -> ReadModels:
    """Return the read models that ``projection`` writes.

    Raises:
        ProjectionDefinitionError: A class is not mapped, or a column cannot be folded.
    """
    models = {into: _read_model(projection.name, into) for into in projection.tables}
    if len({model.table for model in models.values()}) < len(models):
        raise ProjectionDefinitionError(
            projection.name, "two of its classes are mapped to one table; give one of them"
        )
    return MappingProxyType(models)


def _read_model(projection: str, into: type) -> ReadModel:
    try:
        mapper: Mapper[Any] = inspect(into)
    except NoInspectionAvailable as error:
        raise ProjectionDefinitionError(
            projection, f"{into.__name__} is not a mapped class"
        ) from error
    table = mapper.local_table
    if len(mapper.tables) != 1 or mapper.polymorphic_on is not None or not isinstance(table, Table):
        raise ProjectionDefinitionError(
            projection, "a read model is one table without inheritance; map a plain class"
        )
    attributes = {attribute.columns[0]: attribute.key for attribute in mapper.column_attrs}
    key = tuple(table.primary_key.columns)
    rest = [c for c in table.columns if not c.primary_key and not c.computed and c in attributes]
    fields = tuple(Field(attributes[c], c, _initial(projection, c)) for c in (*key, *rest))
    return ReadModel(
        projection,
        table,
        fields,
        len(key),
        defstruct(f"{into.__name__}Row", [f.attribute for f in fields]),
    )


def _initial(projection: str, column: Column[Any]) -> Callable[[], Any]:
    if isinstance(undecorated(column.type), ARRAY):
        raise ProjectionDefinitionError(
            projection, f"column {column.name} is an array, which cannot be upserted; use JSONB"
        )
    if column.onupdate is not None:
        raise ProjectionDefinitionError(
            projection, f"column {column.name} has onupdate=, which no page runs; set it in @on"
        )
    default = column.default
    if default is None:
        if column.server_default is not None and not column.primary_key:
            raise ProjectionDefinitionError(
                projection, f"column {column.name} has its default in the server; give default="
            )
        return lambda: None
    if default.is_callable:
        make = default.arg  # type: ignore[attr-defined] # of CallableColumnDefault
        return lambda: make(None)
    if not default.is_scalar:
        raise ProjectionDefinitionError(
            projection, f"column {column.name} has its default in SQL; give a Python default="
        )
    value = default.arg  # type: ignore[attr-defined] # of ScalarElementColumnDefault
    return (lambda: value) if isinstance(value, Hashable) else lambda: deepcopy(value)


def _shape(key: Hashable) -> str:
    # Its type, not its value: keys may be personal.
    return f"({', '.join(map(_shape, key))})" if isinstance(key, tuple) else type(key).__name__
