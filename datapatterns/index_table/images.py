"""Whether index rows are of the same row, and whether they are the same."""

from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, cast, func
from sqlalchemy.types import UserDefinedType

from datapatterns.index_table.definition import IndexDefinition


class _Record(UserDefinedType[Any]):
    """PostgreSQL's type of any row."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "record"


def same_identity(
    definition: IndexDefinition, entries: FromClause, expected: FromClause
) -> ColumnElement[bool]:
    """Return whether key and primary key are equal."""
    return and_(*(entries.c[name] == expected.c[name] for name in definition.entry_identity))


def differ(entries: FromClause, expected: FromClause) -> ColumnElement[bool]:
    """Return whether anything differs, by identity, not equality: 1.0 is not 1.00, NULL is NULL."""
    return _record(entries).op("OPERATOR(pg_catalog.*<>)", is_comparison=True)(_record(expected))


def _record(rows: FromClause) -> ColumnElement[Any]:
    # Cast, because PostgreSQL compares two ROW() column by column.
    return cast(func.row(*rows.c), _Record)
