"""Rows as PostgreSQL writes them down: the only form that every type survives.

Python would round intervals of months and know nothing of infinite dates. As text, under the
settings that all shards share, a row comes back on another shard as what it was.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from psycopg import Error as DriverError
from psycopg import sql
from psycopg.errors import ExclusionViolation, UniqueViolation
from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Table,
    Text,
    cast,
    column,
    delete,
    exists,
    func,
    literal,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import CopiesDifferError

Image: TypeAlias = tuple[str | None, ...]
RowKey: TypeAlias = tuple[Any, ...]

_ROWS_AT_ONCE = 1_000
_PARAMETERS_MAX = 20_000
"""In one statement; PostgreSQL takes 65,535."""


@dataclass(frozen=True, slots=True)
class TableShape:
    """The columns that a table has on a server, but for those that it computes by itself.

    Attributes:
        columns: Each with its type; shards may have them in another order.
        always: Those whose numbers only the server gives out.
    """

    columns: tuple[tuple[str, str], ...]
    always: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return tuple(name for name, _ in self.columns)


def shape_of(conn: Connection, of: Table) -> TableShape:
    """Return the columns of a table, which stay so until the caller's transaction ends."""
    attribute = table(
        "pg_attribute",
        *map(column, ("attrelid", "attname", "atttypid", "atttypmod", "attnum")),
        *map(column, ("attisdropped", "attgenerated", "attidentity")),
        schema="pg_catalog",
    )
    name = conn.dialect.identifier_preparer.format_table(of)
    found = select(
        cast(attribute.c.attname, Text),
        func.format_type(attribute.c.atttypid, attribute.c.atttypmod),
        cast(attribute.c.attidentity, Text),
    ).where(
        attribute.c.attrelid == cast(literal(name), REGCLASS),
        attribute.c.attnum > 0,
        ~attribute.c.attisdropped,
        cast(attribute.c.attgenerated, Text) == "",
        # Naming the table keeps ALTER TABLE away from now on, before this looks at its columns.
        ~exists(select(literal(1)).select_from(of).limit(0)),
    )
    rows = conn.execute(found.order_by(cast(attribute.c.attname, Text).collate("C"))).all()
    return TableShape(
        tuple((name, type_) for name, type_, _ in rows),
        frozenset(name for name, _, identity in rows if identity == "a"),
    )


def images_of(
    conn: Connection, of: Table, shape: TableShape, keys: Iterable[RowKey]
) -> list[Image]:
    """Return the rows with these primary keys, in the order of the keys; those that exist."""
    found: list[Image] = []
    width = len(of.primary_key.columns)
    for some in _batches(keys):
        rows = conn.execute(
            select(*of.primary_key.columns, *(cast(column(n), Text) for n in shape.names))
            .select_from(of)
            .where(has_key(of, some))
        ).all()
        by_key = {tuple(row[:width]): tuple(row[width:]) for row in rows}
        found += [by_key[key] for key in some if key in by_key]
    return found


def existing_keys(conn: Connection, of: Table, keys: Iterable[RowKey]) -> set[RowKey]:
    """Return which of these primary keys there are."""
    found: set[RowKey] = set()
    for some in _batches(keys):
        rows = conn.execute(select(*of.primary_key.columns).where(has_key(of, some)))
        found.update(tuple(row) for row in rows)
    return found


def has_key(of: Table, keys: Sequence[RowKey]) -> ColumnElement[bool]:
    """Return the condition that a row has one of these primary keys."""
    columns = list(of.primary_key.columns)
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return tuple_(*columns).in_(keys)


def deletions(of: Table, keys: Iterable[RowKey]) -> Iterator[Delete]:
    """Yield the statements that delete the rows with these primary keys."""
    for some in _batches(keys):
        yield delete(of).where(has_key(of, some))


def put_images(
    conn: Connection, of: Table, shape: TableShape, images: Sequence[Image], *, shard: str
) -> None:
    """Make the rows of these images' primary keys be as the images say.

    Raises:
        CopiesDifferError: They cannot, or are not then: another row or a trigger stands in the way.
    """
    rows_at_once = max(1, _PARAMETERS_MAX // len(shape.columns))
    for start in range(0, len(images), rows_at_once):
        _put_some(conn, of, shape, images[start : start + rows_at_once], shard)


def _put_some(
    conn: Connection, of: Table, shape: TableShape, images: Sequence[Image], shard: str
) -> None:
    # In one statement, so that rows may refer to each other.
    cursor: Any = conn.connection.cursor()
    with cursor:
        try:
            cursor.execute(
                _upsert(of, shape, len(images)), [value for image in images for value in image]
            )
            found = cursor.fetchall()
        except (UniqueViolation, ExclusionViolation) as error:
            raise CopiesDifferError(
                of.name, shard, f"another row is in the way of one ({error.diag.constraint_name})"
            ) from error
        except DriverError as error:
            # As SQLAlchemy's, which the same constraint raises on the first shard.
            raise DBAPIError.instance(
                "INSERT", None, error, DriverError, hide_parameters=True, dialect=conn.dialect
            ) from error
    if _settable(of, shape) and found != list(images):
        raise CopiesDifferError(of.name, shard, "a row became another one there, as by a trigger")


def _settable(of: Table, shape: TableShape) -> list[str]:
    keys = {primary.name for primary in of.primary_key.columns}
    return [name for name in shape.names if name not in keys and name not in shape.always]


def _upsert(of: Table, shape: TableShape, rows: int) -> sql.Composed:
    names = [sql.Identifier(name) for name in shape.names]
    target = table_name(of)
    if settable := _settable(of, shape):
        action: sql.Composable = sql.SQL("UPDATE SET {}").format(
            sql.SQL(", ").join(
                sql.SQL("{0} = excluded.{0}").format(sql.Identifier(n)) for n in settable
            )
        )
    else:
        action = sql.SQL("NOTHING")
    row = sql.SQL("({})").format(sql.SQL(", ").join(sql.Placeholder() for _ in names))
    return sql.SQL(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES {} ON CONFLICT ({}) DO {} RETURNING {}"
    ).format(
        target,
        sql.SQL(", ").join(names),
        sql.SQL(", ").join([row] * rows),
        sql.SQL(", ").join(sql.Identifier(key.name) for key in of.primary_key.columns),
        action,
        sql.SQL(", ").join(sql.SQL("CAST({}.{} AS text)").format(target, name) for name in names),
    )


def table_name(of: Table) -> sql.Identifier:
    """Return the name of a table, quoted."""
    return sql.Identifier(of.name) if of.schema is None else sql.Identifier(of.schema, of.name)


def _batches(keys: Iterable[RowKey]) -> Iterator[list[RowKey]]:
    each = iter(dict.fromkeys(keys))
    while some := list(islice(each, _ROWS_AT_ONCE)):
        yield some
