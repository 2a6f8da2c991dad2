"""Compare what a view shows with what its query gives, as multisets of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, Select, TableClause, column, except_all, func, literal, select
from sqlalchemy import table as table_called
from sqlalchemy.sql.selectable import Subquery

from datapatterns.change_log.inspecting import inspect_columns
from datapatterns.errors import SettingsError, ViewSampleError
from datapatterns.materialized_view.definition import ViewDefinition
from datapatterns.materialized_view.needs import has_hash
from datapatterns.materialized_view.part import Part
from datapatterns.materialized_view.reports import Difference, DifferenceKind, ViewVerification


def compare(
    conn: Connection, view: ViewDefinition, relation: str, part: Part, *, limit: int
) -> ViewVerification:
    """Return the rows, at most ``limit``, that ``relation`` and the view's query do not share.

    Args:
        conn: A connection in a transaction; its snapshot, or that of each statement, counts.
        view: The view.
        relation: What is compared with the query: a relation of the view's columns.
        part: Which rows are.
        limit: How many differences are returned.

    Raises:
        SettingsError: Rows differ, and the session writes their dates or intervals in a style that
            the driver does not read.
        ViewSampleError: A sample is wanted of a view whose keys have no hash.
    """
    names = view.names
    shown = _relation(names.schema, relation, view)
    query = _relation(names.schema, names.definition, view)
    share = 1.0
    if part.sample is not None:
        part = _hashed(conn, view, part)
        # Of the view, which is quick to count; the query is what takes long.
        share = part.share_of(conn.execute(_count(shown, part, 1.0)).scalar_one())
    missing, unexpected = _rows(query, part, share), _rows(shown, part, share)
    both = _only(DifferenceKind.MISSING, missing, unexpected).union_all(
        _only(DifferenceKind.UNEXPECTED, unexpected, missing)
    )
    with _readable():
        differences = tuple(
            Difference(DifferenceKind(row[0]), dict(zip(view.columns, row[1:], strict=True)))
            for row in conn.execute(both.limit(limit))
        )
    rows = conn.execute(_count(shown, part, share)).scalar_one()
    return ViewVerification(differences, rows, share, None if part.sample is None else part.seed)


@contextmanager
def _readable() -> Iterator[None]:
    """Say why the driver cannot read a date or an interval.

    Setting the style here would change what the query makes of dates.

    Raises:
        SettingsError: The session writes them in a style of its own.
    """
    try:
        yield
    except NotImplementedError as error:
        raise SettingsError(
            "DateStyle and IntervalStyle",
            f"rows differ, and the driver cannot read them ({error}); SET datestyle TO ISO and"
            " intervalstyle TO postgres in the session that compares",
        ) from error


def _relation(schema: str, name: str, view: ViewDefinition) -> TableClause:
    # Without types: values are compared and shown as the database has them.
    return table_called(name, *map(column, view.columns), schema=schema)


def _rows(relation: TableClause, part: Part, share: float) -> Select[Any]:
    return select(*relation.c).where(part.condition(relation, share))


def _count(relation: TableClause, part: Part, share: float) -> Select[Any]:
    return select(func.count()).select_from(relation).where(part.condition(relation, share))


def _only(kind: DifferenceKind, of: Select[Any], without: Select[Any]) -> Select[Any]:
    difference: Subquery = except_all(of, without).subquery()
    return select(literal(kind.value), *difference.c)


def _hashed(conn: Connection, view: ViewDefinition, part: Part) -> Part:
    """Return the part with that of its key that can be hashed."""
    relation = sql.Identifier(view.names.schema, view.names.definition).as_string(None)
    types = {found.name: found.logged_type_sql for found in inspect_columns(conn, relation)}
    key = [name for name in part.key if has_hash(conn, types[name])]
    if not key:
        raise ViewSampleError(view.names.view)
    return Part(part.columns, key, part.where, part.sample, part.seed)
