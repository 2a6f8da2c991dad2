"""Who may work on a view's stored rows at the same time."""

from typing import LiteralString

from psycopg import sql
from psycopg.errors import UndefinedTable
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from datapatterns.errors import ViewMissingError
from datapatterns.materialized_view.names import ViewNames
from datapatterns.sql.composing import execute

WRITING: LiteralString = "ROW EXCLUSIVE"
"""What writing the stored rows takes anyway; refreshers do not exclude each other by it."""

VERIFYING: LiteralString = "SHARE ROW EXCLUSIVE"
"""Keeps refreshers and other verifiers out, and no readers."""


def hold_stored(conn: Connection, names: ViewNames, mode: LiteralString) -> None:
    """Lock the stored table until the transaction ends, before anything else is locked.

    Always in this order, or somebody who has the table and waits for the consumer would meet
    somebody who has the consumer and waits for the table. This takes no snapshot.

    Raises:
        ViewMissingError: The view was not created.
    """
    lock = sql.SQL("LOCK TABLE {} IN {} MODE")
    try:
        execute(conn, lock.format(sql.Identifier(names.schema, names.stored), sql.SQL(mode)))
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise ViewMissingError(names.view) from error
        raise
