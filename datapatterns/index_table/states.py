"""Which state an index is in, and whether it was built from the definition at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select
from sqlalchemy.exc import ProgrammingError

from datapatterns.errors import (
    IndexChangedError,
    IndexMissingError,
    IndexNotReadyError,
    IsolationLevelError,
)
from datapatterns.index_table.definition import IndexDefinition, fingerprint
from datapatterns.index_table.schema import index_tables

_UNDEFINED_TABLE = "42P01"
_UNDEFINED_COLUMN = "42703"


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """Where an index is in its life.

    Attributes:
        index_id: Its number in this database.
        state: ``building`` (written, not read) or ``ready``.
    """

    index_id: int
    state: str


def index_status(conn: Connection, definition: IndexDefinition) -> IndexStatus:
    """Return the state of the index.

    Raises:
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
    """
    known = index_tables(definition.schema).index_table
    found = conn.execute(
        select(known.c.index_id, known.c.state, known.c.fingerprint).where(
            known.c.name == definition.name
        )
    ).one_or_none()
    if found is None:
        raise IndexMissingError(definition.name)
    if found.fingerprint != fingerprint(definition):
        raise IndexChangedError(definition.name)
    return IndexStatus(index_id=found.index_id, state=found.state)


def is_ready(definition: IndexDefinition) -> ColumnElement[bool]:
    """Return the condition, for a look-up's own statement, that the index may be read."""
    known = index_tables(definition.schema).index_table
    return (
        select(known.c.index_id)
        .where(
            known.c.name == definition.name,
            known.c.state == "ready",
            known.c.fingerprint == fingerprint(definition),
        )
        .exists()
    )


def require_ready(conn: Connection, definition: IndexDefinition) -> None:
    """Raise unless the index may be read.

    Raises:
        IndexNotReadyError: It is still being built.
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
    """
    status = index_status(conn, definition)
    if status.state != "ready":
        raise IndexNotReadyError(definition.name, state=status.state)


@contextmanager
def reading(definition: IndexDefinition) -> Iterator[None]:
    """Say what it means if the index that a statement reads isn't there, or not so.

    A look-up doesn't ask for the index's state first: that would be a second statement. So the
    transaction accepts nothing more after one of these errors.

    Raises:
        IndexMissingError: There is no such table.
        IndexChangedError: It has no such column.
    """
    try:
        yield
    except ProgrammingError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state == _UNDEFINED_TABLE:
            raise IndexMissingError(definition.name) from error
        if state == _UNDEFINED_COLUMN:
            raise IndexChangedError(definition.name) from error
        raise


def require_read_committed(conn: Connection) -> None:
    """Raise unless each statement of the transaction sees what was committed before it.

    Raises:
        IsolationLevelError: The transaction keeps an older snapshot.
    """
    found = conn.exec_driver_sql("SELECT current_setting('transaction_isolation')").scalar_one()
    if found != "read committed":
        raise IsolationLevelError(found=found, needed="read committed")
