"""Name what values depend on besides their key: tables, rows, and columns of one value.

A value under a tag dies with the tag's stamp, whoever changes what the tag stands for. So readers
and writers have to call it by the same name: a value goes through its column's type first, and
types whose equal values are not identical name nothing but their table.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import (
    CHAR,
    Boolean,
    Column,
    ColumnElement,
    Date,
    Enum,
    Integer,
    LargeBinary,
    Null,
    String,
    Table,
    TypeDecorator,
    Uuid,
    inspect,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter
from sqlalchemy.types import TypeEngine

from datapatterns.cache_aside.codec import TAGS_MAX
from datapatterns.cache_aside.keys import Key, KeyPart, entry_of, escaped
from datapatterns.cache_aside.steps import Wanted
from datapatterns.errors import CacheKeyError

Tagged: TypeAlias = "type | Table | ColumnElement[Any]"

_TAGGED = "datapatterns.cache_tag"
TAGGED: Final = {_TAGGED: True}
"""The ``info`` of a column whose values are tags: those who write it name the value before and
after, so that ``tag(column == value)`` can be depended on."""

_TAG = re.compile(r"[A-Za-z0-9_.@ :%=#?-]{1,250}")
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's
_PLAIN_COLLATIONS = {None, "C", "POSIX", "ucs_basic", "default"}
_IDENTICAL_IF_EQUAL = (Boolean, Date, Integer, LargeBinary, String, Uuid)
_EQUAL_NOT_IDENTICAL = (CHAR, postgresql.CITEXT)  # kinds of String


def tag(what: Tagged, *key: KeyPart) -> str:
    """Return the tag of a table, of a row or of a column's value.

    >>> from sqlalchemy import Column, Integer, MetaData, Table
    >>> product = Table("product", MetaData(), Column("id", Integer, primary_key=True),
    ...                 Column("department", Integer, info=TAGGED))
    >>> tag(product), tag(product, 5), tag(product.c.department == 7)
    ('product', 'product:i5', 'product.department=i7')

    Args:
        what: A mapped class or a table; or ``column == value``, for what depends on the rows that
            have this value in a column declared as `TAGGED`.
        key: The primary key, for what depends on this row alone.

    Raises:
        CacheKeyError: A value is not of its column's type, or of a type whose equal values are
            not identical.
    """
    if isinstance(what, BinaryExpression):
        return _tag_of_value(what)
    table = table_of(what)
    if not key:
        return table_tag(table)
    columns = [*table.primary_key]
    if len(columns) != len(key):
        raise CacheKeyError(key, f"the primary key of {table.name} has {len(columns)} columns")
    return row_tag(table, key)


def table_of(what: object) -> Table:
    """Return the table of a mapped class, or the table itself.

    Raises:
        CacheKeyError: It is neither.
    """
    if isinstance(what, Table):
        return what
    mapper: object = inspect(what, raiseerr=False) if isinstance(what, type) else None
    if isinstance(mapper, Mapper):
        table: object = mapper.local_table
        if isinstance(table, Table):
            return table
    raise CacheKeyError(what, "name a mapped class, a table or column == value")


def table_tag(table: Table) -> str:
    """Return the tag of all rows of ``table``."""
    return escaped(table.fullname)


def of_unknown_rows(table_tag: str) -> set[str]:
    """Return the tags that a write changes of which nobody knows the rows.

    Whatever depends on some rows of a table depends on the second of them.
    """
    return {table_tag, f"{table_tag}:?"}


def row_tag(table: Table, key: tuple[Any, ...]) -> str:
    """Return the tag of the row with this primary key."""
    return stored_row_tag(table_tag(table), tuple(map(canonical, table.primary_key, key)))


def stored_row_tag(table_tag: str, key: tuple[KeyPart, ...]) -> str:
    """Return the tag of the row with this primary key, as it is stored."""
    return entry_of(table_tag, key)


def is_tagged(column: Column[Any]) -> bool:
    """Return whether ``column`` is declared as `TAGGED`."""
    return bool(column.info.get(_TAGGED))


def value_tag(column: Column[Any], value: object) -> str:
    """Return the tag of the rows with ``value`` in ``column``.

    Raises:
        CacheKeyError: The column is not declared as `TAGGED`.
    """
    if not is_tagged(column):
        raise CacheKeyError(str(column), "declare it with info=TAGGED, so that writers name it")
    return stored_value_tag(table_tag(column.table), column.name, canonical(column, value))


def stored_value_tag(table_tag: str, column: str, value: KeyPart) -> str:
    """Return the tag of the rows with ``value``, as it is stored, in a column."""
    # As an entry is named, so that no two values share a name.
    return entry_of(f"{table_tag}.{escaped(column)}", value).replace(":", "=", 1)


def canonical(column: Column[Any], value: object) -> KeyPart:
    """Return ``value`` as it is stored in ``column``, whichever way it is written.

    Raises:
        CacheKeyError: The type's equal values are not identical, or it is no value of this type.
    """
    if not names_values(column):
        raise CacheKeyError(value, f"equal values of {column} may differ; use the table's tag")
    stored_type = _stored_type(column)
    process = column.type.dialect_impl(_DIALECT).bind_processor(_DIALECT)
    stored: Any = process(value) if process is not None and value is not None else value
    if isinstance(stored_type, Uuid) and stored_type.native_uuid and isinstance(stored, str):
        stored = _uuid_in(stored)  # of several texts, but one value
    if stored is None:
        return None
    wanted = _python_type(column.type)
    # Python calls True an int, and equal to 1.
    is_odd = isinstance(stored, bool) != isinstance(stored_type, Boolean)
    if is_odd or not isinstance(value, wanted) or not isinstance(stored, _named_by(stored_type)):
        raise CacheKeyError(value, f"{column} holds {wanted.__name__}")
    return stored  # type: ignore[return-value]  # checked by who encodes it


def names_values(column: Column[Any]) -> bool:
    """Return whether equal values of ``column`` are identical, so that each has one name."""
    stored_type = _stored_type(column)
    collation = stored_type.collation if isinstance(stored_type, String) else None
    return (
        isinstance(stored_type, _IDENTICAL_IF_EQUAL)
        and not isinstance(stored_type, _EQUAL_NOT_IDENTICAL)
        and collation in _PLAIN_COLLATIONS
    )


def is_stored_as_it_is(column: Column[Any]) -> bool:
    """Return whether the table has the same values as Python, so that both name them alike."""
    declared = column.type
    if isinstance(declared, TypeDecorator | Enum):
        return False
    return not isinstance(declared, Uuid) or declared.as_uuid


def _stored_type(column: Column[Any]) -> TypeEngine[Any]:
    """Return what PostgreSQL is given, whatever the user's own types make of it."""
    # Not its form for the dialect, in which CHAR is a text like others.
    stored_type: Any = column.type
    while isinstance(stored_type, TypeDecorator):
        stored_type = stored_type.load_dialect_impl(_DIALECT)
    return stored_type  # type: ignore[no-any-return]  # as SQLAlchemy says


def _named_by(stored_type: TypeEngine[Any]) -> type:
    """Return of which type the names of stored values are made."""
    if isinstance(stored_type, Uuid):
        return UUID if stored_type.native_uuid else str
    return str if isinstance(stored_type, String) else _python_type(stored_type)


def _python_type(declared: TypeEngine[Any]) -> type:
    try:
        return declared.python_type
    except NotImplementedError:
        return object


def _uuid_in(written: str) -> UUID:
    try:
        return UUID(written)
    except ValueError:
        raise CacheKeyError(written, "it is no UUID") from None


def no_tags(_: object, /) -> tuple[str, ...]:
    """Return no tags, for what depends on its key alone."""
    return ()


def checked_tags(names: Iterable[str]) -> tuple[str, ...]:
    """Return what a reader depends on: ``names``, each once, if each can be a tag.

    Whoever depends on some rows of a table depends on writes of unknown rows, too.

    Raises:
        CacheKeyError: One cannot, or they are too many.
    """
    tags = tuple(dict.fromkeys(each for name in names for each in _with_unknown_rows(name)))
    if len(tags) > TAGS_MAX:
        raise CacheKeyError(tags[0], f"a value has at most {TAGS_MAX} tags; use those of tables")
    return tags


def wanted_of(cache: str, key: Key, tags: Iterable[str]) -> Wanted:
    """Return the entry under ``key`` of ``cache``, and what it depends on.

    Raises:
        CacheKeyError: The key or a tag cannot be one.
    """
    return Wanted(entry_of(cache, key), checked_tags(tags))


def checked_tag(name: str) -> str:
    """Return ``name`` if it can be a tag.

    Raises:
        CacheKeyError: It is not 1 to 250 of letters, digits and some signs.
    """
    if not _TAG.fullmatch(name):
        raise CacheKeyError(name, "make tags with tag(), or of letters, digits and _.@ :%=#?-")
    return name


def _with_unknown_rows(name: str) -> tuple[str, ...]:
    table, row, _ = checked_tag(name).partition(":")
    column, value, _ = name.partition("=")
    if value:
        return name, f"{column.rpartition('.')[0]}:?"
    return (name, f"{table}:?") if row else (name,)


def _tag_of_value(condition: BinaryExpression[Any]) -> str:
    column: Any = condition.left
    value: Any = condition.right
    if isinstance(column, ColumnElement):
        column = column._deannotate()  # noqa: SLF001 -- as the table has it, not the ORM
    if isinstance(column, Column) and isinstance(column.table, Table):
        if condition.operator is operators.eq and isinstance(value, BindParameter):
            return value_tag(column, value.value)
        if condition.operator is operators.is_ and isinstance(value, Null):
            return value_tag(column, None)
    raise CacheKeyError(str(condition), "a tag is a column of a table == a value")
