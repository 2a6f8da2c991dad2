"""What a server must be, and what its refusals mean."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as sqlstates
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import (
    DataPatternsError,
    IsolationLevelError,
    MissingRightsError,
    ReadOnlyServerError,
    ServerTooOldError,
    ServerUnavailableError,
    SettingsError,
)

OLDEST_POSTGRES = 14
"""The oldest major version whose SQL the library is written in."""

_NOT_ANSWERING = ("08", "53", "57P")
"""SQLSTATEs of a connection that broke, a server that is full, and one that shuts down."""


def check_server(conn: Connection) -> None:
    """Check that the server is new enough.

    Raises:
        ServerTooOldError: It is older than PostgreSQL 14.
    """
    version = conn.dialect.server_version_info or (0,)
    if int(version[0]) < OLDEST_POSTGRES:
        raise ServerTooOldError(
            "PostgreSQL", found=".".join(map(str, version)), needed=OLDEST_POSTGRES
        )


def check_writable(conn: Connection) -> None:
    """Check that this transaction may write, and sees what others commit while it waits.

    Raises:
        ReadOnlyServerError: The transaction is read only, as on a standby.
        IsolationLevelError: It keeps the snapshot of its first statement, or there is none: in
            autocommit mode each statement stands alone.
    """
    if conn.dialect.detect_autocommit_setting(conn.connection.driver_connection):  # type: ignore[arg-type]  # it is open
        raise IsolationLevelError(found="autocommit", needed="read committed")
    isolation, read_only = conn.execute(
        text(
            "SELECT current_setting('transaction_isolation'),"
            " current_setting('transaction_read_only')::boolean"
        )
    ).one()
    if read_only:
        raise ReadOnlyServerError
    if isolation != "read committed":
        raise IsolationLevelError(found=isolation, needed="read committed")


@contextmanager
def library_errors(server: str) -> Iterator[None]:
    """Turn what the driver raises into errors of this library, where they have a name here.

    What the driver says of statements and parameters stays out of the message.

    Args:
        server: How to name the server, without its password.
    """
    try:
        yield
    except DBAPIError as error:
        named = named_error(error.orig, server)
        if named is None:
            raise
        raise named from error


def named_error(error: BaseException | None, server: str) -> DataPatternsError | None:
    """Return what the driver's ``error`` is called in this library, None if it has no name."""
    if isinstance(error, sqlstates.InsufficientPrivilege):
        return MissingRightsError(_said(error))
    if isinstance(error, sqlstates.ReadOnlySqlTransaction):
        return ReadOnlyServerError()
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return SettingsError("database URL", f"{_said(error)}; mend the part after the ?")
    if isinstance(error, psycopg.OperationalError) and (
        error.sqlstate is None or error.sqlstate.startswith(_NOT_ANSWERING)
    ):
        return ServerUnavailableError(server, _said(error))
    return None


def _said(error: psycopg.Error) -> str:
    """Return the first line of what server or driver said; further lines may quote rows."""
    primary = error.diag.message_primary
    return primary or next(iter(str(error).strip().splitlines()), type(error).__name__)
