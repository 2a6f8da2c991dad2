"""Core constructs as SQL text, for what PostgreSQL stores: function bodies and views."""

from typing import Any

from sqlalchemy import ClauseElement, Connection, CursorResult, Table
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

# A paramstyle that leaves % alone: the text becomes part of a function, not of a statement
# with parameters.
_DIALECT = PGDialect_psycopg(paramstyle="named")  # type: ignore[no-untyped-call]  # takes any option


def rendered(construct: ClauseElement) -> str:
    """Return the SQL of ``construct`` with its values written into it."""
    compiled = construct.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True})
    return str(compiled)


def quoted(name: str) -> str:
    """Return ``name`` as an identifier."""
    return _DIALECT.identifier_preparer.quote_identifier(name)


def table_name(table: Table) -> str:
    """Return a table's name as SQL; without schema it is found on the search path."""
    parts = [part for part in (table.schema, table.name) if part is not None]
    return ".".join(quoted(part) for part in parts)


def quoted_text(value: str) -> str:
    """Return ``value`` as a string constant, whatever the session's escaping rules are."""
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"


def run(conn: Connection, sql: str) -> CursorResult[Any]:
    """Execute ``sql`` as it stands; one string may hold several statements."""
    return conn.exec_driver_sql(sql, execution_options={"no_parameters": True})
