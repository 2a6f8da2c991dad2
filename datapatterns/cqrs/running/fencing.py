"""Tell that a lease was lost from what else may be wrong with a table."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from datapatterns.cqrs.running.leasing import Lease, is_latest
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.errors import LeaseLostError
from datapatterns.transactions import reading


@contextmanager
def telling_fenced(conn: Connection, tables: ProjectionTables, lease: Lease) -> Iterator[None]:
    """Say that the lease was lost where that is why a table, a column or a right is missing.

    A page that began before another version took the place finds the tables renamed.

    Raises:
        LeaseLostError: So it is.
    """
    try:
        yield
    except ProgrammingError as error:
        if conn.invalidated:
            raise
        with reading(conn):
            latest = is_latest(conn, tables, lease)
        if latest:
            raise
        raise LeaseLostError(f"projection {lease.name}", epoch=lease.epoch) from error
