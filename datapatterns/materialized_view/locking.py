"""What is locked first by who writes a view's stored rows."""

import hashlib

from psycopg import sql
from psycopg.errors import UndefinedTable
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import ProgrammingError

from datapatterns.errors import ViewMissingError
from datapatterns.materialized_view.names import ViewNames
from datapatterns.sql.composing import execute

_WRITING = sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE")
_ALONE = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE")


def hold_versions(conn: Connection, names: ViewNames, *, skip_locked: bool = False) -> bool:
    """Keep others from replacing the view, until the transaction ends; return whether it is held.

    First of all, by whoever works on the version that is going to take its place. Who works on the
    view itself needs it not. The transaction gets no id by it.

    Args:
        conn: A connection in a transaction.
        names: The view's.
        skip_locked: Return False if somebody else has it, instead of waiting.
    """
    digest = hashlib.sha256(f"datapatterns versions of {names.schema}.{names.view}".encode())
    key = int.from_bytes(digest.digest()[:8], "big", signed=True)
    if skip_locked:
        return bool(conn.scalar(select(func.pg_try_advisory_xact_lock(key))))
    conn.execute(select(func.pg_advisory_xact_lock(key)))
    return True


def hold_stored(conn: Connection, names: ViewNames, *, alone: bool = False) -> None:
    """Lock the stored table, as writing it does, before anything else is locked.

    Always in this order, or somebody who has the table and waits for the consumer would meet
    somebody who has the consumer and waits for the table. This takes no snapshot, and refreshers
    do not exclude each other by it; ``alone`` excludes all of them, and no readers.

    Raises:
        ViewMissingError: The view was not created.
    """
    lock = _ALONE if alone else _WRITING
    try:
        execute(conn, lock.format(sql.Identifier(names.schema, names.stored)))
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable):
            raise ViewMissingError(names.view) from error
        raise
