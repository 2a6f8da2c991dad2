"""Servers and the library's tables there: without them nothing else can be asked."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from datapatterns.errors import DataPatternsError
from datapatterns.overview.standing import Concern, Standing
from datapatterns.sql.migration_status import MigrationStatus, migration_status
from datapatterns.sql.server import check_server, library_errors
from datapatterns.transactions import fresh_reads, reading

T = TypeVar("T")

_REASONS = {
    "behind": "its tables are older than this version of the library",
    "unknown": "its tables were migrated by a newer version of the library",
    "occupied": "the schema holds tables of somebody else",
}
_ADVICE = {
    "behind": "datapatterns migrate upgrade",
    "unknown": "install the version of the library that migrated them, or a newer one",
    "occupied": "name another schema: --schema, DATAPATTERNS_SCHEMA",
}


def asked(engine: Engine, name: str, ask: Callable[[Connection], T]) -> T:
    """Return what ``ask`` finds out in a transaction that only reads.

    Raises:
        ServerUnavailableError: The server did not answer.
    """
    # Views and projections refuse the snapshot of a stricter level, which an engine may have.
    with library_errors(name), fresh_reads(engine) as conn, reading(conn):
        return ask(conn)


def server_standing(engine: Engine, name: str, *, schema: str) -> Standing:
    """Return whether a database answers and has the tables that this version works with."""

    def look(conn: Connection) -> MigrationStatus:
        check_server(conn)
        return migration_status(conn, schema=schema)

    try:
        found = asked(engine, name, look)
    except (DataPatternsError, SQLAlchemyError) as error:
        return unreachable(name, name, error)
    state, revision = found.state, found.revision or "no tables"
    return Standing(
        pattern="server",
        name=name,
        database=name,
        state=f"{state} at {revision}" if found.revision else revision,
        concern=Concern.FINE if state == "current" else Concern.WRONG,
        reason=_REASONS.get(state),
        advice=_ADVICE.get(state),
    )


def unreachable(name: str, database: str, error: Exception) -> Standing:
    """Return that a server does not answer, or does not let us look."""
    return Standing(
        pattern="server",
        name=name,
        database=database,
        state="not answering",
        concern=Concern.WRONG,
        reason=told(error),
        advice="datapatterns doctor",
    )


def told(error: Exception) -> str:
    """Return what went wrong in a line: of a driver's error without its statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return next(iter(str(cause).strip().splitlines()), type(error).__name__)
