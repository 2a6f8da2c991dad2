"""Merged rows as a result."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from sqlalchemy import Executable
from sqlalchemy.dialects.postgresql import dialect
from sqlalchemy.engine.result import SimpleResultMetaData

from datapatterns.sharding.reaching.results import ShardResult
from datapatterns.sharding.scatter.selected import AnySelect

_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped


def as_result(
    statement: Executable, rows: Sequence[Sequence[Any]], missing: Iterable[str] = ()
) -> ShardResult:
    """Return merged rows as a session returns others: by position, name, or column."""
    return ShardResult(metadata_of(statement), rows, missing)


def metadata_of(statement: Executable) -> SimpleResultMetaData:
    """Return by which names and columns the rows of ``statement`` are known."""
    described = cast("AnySelect", statement).column_descriptions
    names = [str(column["name"]) for column in described]
    if statement._propagate_attrs.get("compile_state_plugin") != "orm":  # noqa: SLF001
        # Without mapped classes, SQLAlchemy goes by the names that it makes up for PostgreSQL.
        compiled: Any = cast("AnySelect", statement).compile(dialect=_DIALECT)
        names = [column.keyname for column in compiled._result_columns]  # noqa: SLF001
    return SimpleResultMetaData(names, [(column["expr"],) for column in described])
