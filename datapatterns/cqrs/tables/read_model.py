"""A read model in a table: read the rows that a page concerns, write them all at once."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, make_dataclass
from decimal import Decimal
from functools import cache
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    ARRAY,
    CHAR,
    VARCHAR,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Float,
    Insert,
    Numeric,
    Select,
    String,
    Table,
    TableValuedAlias,
    Text,
    Unicode,
    UnicodeText,
    and_,
    bindparam,
    column,
    delete,
    func,
    inspect,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper
from sqlalchemy.types import TypeDecorator, TypeEngine

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.tables.folding import Rows
from datapatterns.errors import ProjectionDefinitionError, ReadModelKeyError
from datapatterns.sql.metadata import declared_once

_PLAIN_TEXT = (String, Text, VARCHAR, CHAR, Unicode, UnicodeText)


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
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return {}
        parts = [self._parts(key) for key in wanted]
        found = conn.execute(
            _fetch_statement(self), _arrays(self.key_columns, zip(*parts, strict=True))
        )
        rows: Rows = {self._key(tuple(row)): self.row_class(*row) for row in found}
        if strange := rows.keys() - set(wanted):
            raise ReadModelKeyError(
                self.name, f"a stored key comes back as {_shape(next(iter(strange)))}"
            )
        return rows

    def delete(self, conn: Connection, rows: Rows) -> None:
        """Delete those of ``rows`` that are None, in one statement."""
        gone = [self._parts(key) for key, row in rows.items() if row is None]
        if gone:
            conn.execute(
                _delete_statement(self), _arrays(self.key_columns, zip(*gone, strict=True))
            )

    def upsert(self, conn: Connection, rows: Rows) -> None:
        """Store those of ``rows`` that are there, in one statement.

        Raises:
            ReadModelKeyError: A handler has changed the key of its row.
        """
        values = attrgetter(*(field.attribute for field in self.fields))
        kept = []
        for key, row in rows.items():
            if row is None:
                continue
            # attrgetter gives no tuple for a single name.
            stored = values(row) if len(self.fields) > 1 else (values(row),)
            if self._key(stored) != key:
                raise ReadModelKeyError(self.name, "a handler changed the key of its row")
            kept.append(stored)
        if kept:
            conn.execute(_upsert_statement(self), _arrays(self.columns, zip(*kept, strict=True)))

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
def read_models_of(projection: type[Projection]) -> ReadModels:
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
        make_dataclass(f"{into.__name__}Row", [f.attribute for f in fields], slots=True),
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


def undecorated(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return what a type is in the database, without what the application puts around it."""
    return type_.impl_instance if isinstance(type_, TypeDecorator) else type_


def _array_of(column: Column[Any]) -> ARRAY[Any]:
    # A cast to varchar(3)[] cuts longer text without a word, where an INSERT refuses it.
    # One dimension, or a list that is a JSON value would be taken for an inner array.
    return ARRAY(_of_any_length(column.type), dimensions=1)


def _of_any_length(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    if type(undecorated(type_)) not in _PLAIN_TEXT:
        return type_
    if not isinstance(type_, TypeDecorator):
        return Text()
    longer = type_.copy()
    longer.impl = longer.impl_instance = Text()
    return longer


def _arrays(
    columns: Sequence[Column[Any]], values: Iterable[tuple[Any, ...]]
) -> dict[str, list[Any]]:
    return {
        f"v{i}": _of_one_class(columns[i], part)
        for i, part in enumerate(values)
        if i < len(columns)
    }


def _of_one_class(column: Column[Any], values: Iterable[Any]) -> list[Any]:
    # An INSERT of one row takes an integer, such as the default 0, for any number; the driver
    # refuses a list of several classes. Which rows share a list is chance, so always convert.
    if isinstance(column.type, Float):
        return [float(v) if isinstance(v, int | Decimal) else v for v in values]
    if isinstance(column.type, Numeric):
        return [Decimal(str(v)) if isinstance(v, int | float) else v for v in values]
    return list(values)


def _unnested(columns: Sequence[Column[Any]]) -> TableValuedAlias:
    arrays = [bindparam(f"v{i}", type_=_array_of(c)) for i, c in enumerate(columns)]
    parts = [column(f"c{i}", _array_of(c).item_type) for i, c in enumerate(columns)]
    return func.unnest(*arrays).table_valued(*parts, name="page").render_derived()


def _same_key(model: ReadModel, page: TableValuedAlias) -> ColumnElement[bool]:
    return and_(*(c == page.c[f"c{i}"] for i, c in enumerate(model.key_columns)))


@cache
def _fetch_statement(model: ReadModel) -> Select[Any]:
    page = _unnested(model.key_columns)
    return select(*model.columns).select_from(page.join(model.table, _same_key(model, page)))


@cache
def _delete_statement(model: ReadModel) -> Delete:
    return delete(model.table).where(_same_key(model, _unnested(model.key_columns)))


@cache
def _upsert_statement(model: ReadModel) -> Insert:
    page = _unnested(model.columns)
    # In the order of the key: two runners that overlap for a moment wait instead of deadlocking.
    rows = select(*page.c).order_by(*list(page.c)[: model.key_length])
    upsert = insert(model.table).from_select(
        [c.name for c in model.columns], rows, include_defaults=False
    )
    changed = {c.name: upsert.excluded[c.name] for c in model.columns[model.key_length :]}
    if not changed:
        return upsert.on_conflict_do_nothing(index_elements=list(model.key_columns))
    return upsert.on_conflict_do_update(index_elements=list(model.key_columns), set_=changed)


def _shape(key: Hashable) -> str:
    # Its type, not its value: keys may be personal.
    return f"({', '.join(map(_shape, key))})" if isinstance(key, tuple) else type(key).__name__
