"""Rows as text, read to be deleted here and inserted there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from psycopg import Error as DriverError
from psycopg import sql
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import ShardedTableError
from datapatterns.sharding.broadcasting.images import Image, TableShape, table_name
from datapatterns.sharding.rekeying.references import Reference

T = TypeVar("T")

_PARAMETERS_MAX: Final = 60_000
"""In one statement; PostgreSQL takes 65,535."""
_ROWS_AT_ONCE: Final = 10_000


def locked_rows(
    conn: Connection, of: Table, shape: TableShape, values: Mapping[str, str]
) -> list[Image]:
    """Lock and return the rows that have these values in these columns."""
    statement = sql.SQL("SELECT {} FROM {} WHERE {} FOR UPDATE").format(
        _as_text(of, shape), table_name(of), _conditions(values)
    )
    return _rows(conn, "SELECT", statement, list(values.values()))


def delete_rows(conn: Connection, of: Table, keys: Sequence[Mapping[str, str]]) -> None:
    """Delete rows by their primary keys, many in one statement, so that they may refer to others.

    Raises:
        IntegrityError: Others refer to them.
        ShardedTableError: They are there still, as by a trigger that only marks them.
    """
    for some in _batches(keys, len(of.primary_key.columns)):
        wanted = sql.SQL(" OR ").join(sql.SQL("({})").format(_conditions(key)) for key in some)
        values = [value for key in some for value in key.values()]
        deletion = sql.SQL("DELETE FROM {} WHERE {} RETURNING 1").format(table_name(of), wanted)
        if len(_rows(conn, "DELETE", deletion, values)) == len(some):
            continue
        # Or a foreign key has deleted them with what they referred to.
        left = sql.SQL("SELECT 1 FROM {} WHERE {} LIMIT 1").format(table_name(of), wanted)
        if _rows(conn, "SELECT", left, values):
            raise ShardedTableError(
                of.name, "a row stayed where it was moved away from; let no trigger keep it"
            )


def is_referred_to(conn: Connection, reference: Reference, values: Mapping[str, str]) -> bool:
    """Return whether a row of a table that is not of the group has these values."""
    statement = sql.SQL("SELECT 1 FROM {} WHERE {} LIMIT 1").format(
        sql.Identifier(reference.schema, reference.child), _conditions(values)
    )
    return bool(_rows(conn, "SELECT", statement, list(values.values())))


def insert_rows(conn: Connection, of: Table, shape: TableShape, images: Sequence[Image]) -> None:
    """Insert rows as they are, many in one statement, so that they may refer to each other.

    Raises:
        IntegrityError: Another row is in the way, or what they refer to is not there.
        ShardedTableError: They became others there, as by a trigger.
    """
    for some in _batches(images, len(shape.names)):
        if _inserted(conn, of, shape, some) != list(some):
            raise ShardedTableError(
                of.name, "a row became another one where it was moved to; let no trigger change it"
            )


def _inserted(
    conn: Connection, of: Table, shape: TableShape, images: Sequence[Image]
) -> list[Image]:
    row = sql.SQL("({})").format(sql.SQL(", ").join(sql.Placeholder() for _ in shape.names))
    statement = sql.SQL(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES {} RETURNING {}"
    ).format(
        table_name(of),
        sql.SQL(", ").join(sql.Identifier(name) for name in shape.names),
        sql.SQL(", ").join([row] * len(images)),
        _as_text(of, shape),
    )
    return _rows(conn, "INSERT", statement, [value for image in images for value in image])


def _batches(rows: Sequence[T], width: int) -> Iterator[Sequence[T]]:
    """Yield as many rows at once as a statement has parameters for."""
    at_once = max(1, min(_ROWS_AT_ONCE, _PARAMETERS_MAX // width))
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once]


def _rows(
    conn: Connection, kind: str, statement: sql.Composed, values: Sequence[str | None]
) -> list[Image]:
    cursor: Any = conn.connection.cursor()
    with cursor:
        try:
            cursor.execute(statement, values)
            found: list[Image] = cursor.fetchall()
        except DriverError as error:
            raise DBAPIError.instance(
                kind, None, error, DriverError, hide_parameters=True, dialect=conn.dialect
            ) from error
    return found


def _as_text(of: Table, shape: TableShape) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("CAST({}.{} AS text)").format(table_name(of), sql.Identifier(name))
        for name in shape.names
    )


def _conditions(values: Mapping[str, str]) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder()) for name in values
    )
