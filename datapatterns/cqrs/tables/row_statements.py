"""The statements that read and write rows of a read model, many at once, as one list a column."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, TypeAlias

from sqlalchemy import (
    ARRAY,
    CHAR,
    VARCHAR,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
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
    select,
)
from sqlalchemy.dialects.postgresql import Insert as UpsertableInsert
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import TypeDecorator, TypeEngine

from datapatterns.sql.packing import PackedArray, is_packable, pack_on

_PLAIN_TEXT = (String, Text, VARCHAR, CHAR, Unicode, UnicodeText)

Columns: TypeAlias = tuple[Column[Any], ...]


def send(
    conn: Connection,
    statement: Select[Any] | Insert | Delete,
    columns: Columns,
    values: Iterable[Iterable[Any]],
) -> CursorResult[Any]:
    """Execute a statement of those below with the ``values`` of each of its ``columns``."""
    pack_on(conn)
    arrays = {
        f"v{i}": _of_one_class(one, part)
        for i, (one, part) in enumerate(zip(columns, values, strict=True))
    }
    return conn.execute(statement, arrays)


def find(
    conn: Connection,
    table: Table,
    columns: Columns,
    key_length: int,
    keys: Iterable[Iterable[Any]],
) -> Iterable[Sequence[Any]]:
    """Return the rows of ``table`` that have one of ``keys``, which are given by column."""
    statement = _fetch_statement(table, columns, key_length)
    result = send(conn, statement, columns[:key_length], keys)
    # The driver's rows, and what the types make of them: SQLAlchemy's would cost twice as much.
    cursor = result.cursor
    assert cursor is not None
    rows = cursor.fetchall()
    types = [described[1] for described in cursor.description]
    result.close()
    makers = [
        one.type.dialect_impl(conn.dialect).result_processor(conn.dialect, type_)
        for one, type_ in zip(columns, types, strict=True)
    ]
    if not rows or not any(makers):
        return rows
    parts = zip(*rows, strict=True)
    made = (
        part if make is None else map(make, part) for make, part in zip(makers, parts, strict=True)
    )
    return zip(*made, strict=True)


@cache
def delete_statement(table: Table, key: Columns) -> Delete:
    """Return what deletes the rows with some keys."""
    return delete(table).where(_same_key(key, _unnested(key)))


@cache
def insert_statement(table: Table, columns: Columns, key_length: int) -> Insert:
    """Return what stores rows that are not there yet; those that are, it leaves as they are."""
    key = list(columns[:key_length])
    new = _insert(table, columns, key_length).on_conflict_do_nothing(index_elements=key)
    return new.execution_options(preserve_rowcount=True)  # which tells how many were new


@cache
def upsert_statement(table: Table, columns: Columns, key_length: int) -> Insert:
    """Return what stores rows, the key's columns first, whether they were there or not."""
    upsert = _insert(table, columns, key_length)
    key = list(columns[:key_length])
    changed = {c.name: upsert.excluded[c.name] for c in columns[key_length:]}
    if not changed:
        return upsert.on_conflict_do_nothing(index_elements=key)
    return upsert.on_conflict_do_update(index_elements=key, set_=changed)


def _insert(table: Table, columns: Columns, key_length: int) -> UpsertableInsert:
    page = _unnested(columns)
    # In the order of the key: two runners that overlap for a moment wait instead of deadlocking.
    rows = select(*page.c).order_by(*list(page.c)[:key_length])
    return insert(table).from_select([c.name for c in columns], rows, include_defaults=False)


@cache
def _fetch_statement(table: Table, columns: Columns, key_length: int) -> Select[Any]:
    key = columns[:key_length]
    page = _unnested(key)
    return select(*columns).select_from(page.join(table, _same_key(key, page)))


def undecorated(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return what a type is in the database, without what the application puts around it."""
    return type_.impl_instance if isinstance(type_, TypeDecorator) else type_


def _unnested(columns: Columns) -> TableValuedAlias:
    types = [_array_of(c) for c in columns]
    arrays = [bindparam(f"v{i}", type_=type_) for i, type_ in enumerate(types)]
    parts = [column(f"c{i}", type_.item_type) for i, type_ in enumerate(types)]
    return func.unnest(*arrays).table_valued(*parts, name="page").render_derived()


def _same_key(key: Columns, page: TableValuedAlias) -> ColumnElement[bool]:
    return and_(*(c == page.c[f"c{i}"] for i, c in enumerate(key)))


def _array_of(column: Column[Any]) -> ARRAY[Any] | PackedArray:
    # A cast to varchar(3)[] cuts longer text without a word, where an INSERT refuses it.
    item = _of_any_length(column.type)
    if is_packable(item):
        return PackedArray(item)
    # One dimension, or a list that is a JSON value would be taken for an inner array.
    return ARRAY(item, dimensions=1)


def _of_any_length(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    if type(undecorated(type_)) not in _PLAIN_TEXT:
        return type_
    if not isinstance(type_, TypeDecorator):
        return Text()
    longer = type_.copy()
    longer.impl = longer.impl_instance = Text()
    return longer


def _of_one_class(column: Column[Any], values: Iterable[Any]) -> list[Any]:
    # An INSERT of one row takes an integer, such as the default 0, for any number; the driver
    # refuses a list of several classes. Which rows share a list is chance, so always convert.
    if isinstance(column.type, Float):
        return [float(v) if isinstance(v, int | Decimal) else v for v in values]
    if isinstance(column.type, Numeric):
        return [Decimal(str(v)) if isinstance(v, int | float) else v for v in values]
    return list(values)
