"""Which state an index is in, and whether it was built from the definition at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Select,
    and_,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.exc import ProgrammingError

from datapatterns.change_log import change_log_tables
from datapatterns.errors import (
    IndexChangedError,
    IndexDetachedError,
    IndexMissingError,
    IndexNotReadyError,
    IsolationLevelError,
)
from datapatterns.index_table.definition import IndexDefinition, fingerprint
from datapatterns.index_table.maintenance import consumer_name, trigger_names, view_name
from datapatterns.index_table.schema import index_tables
from datapatterns.index_table.statements import rendered, table_name
from datapatterns.index_table.subscribing import capture_triggers

_UNDEFINED_TABLE = "42P01"
_UNDEFINED_COLUMN = "42703"

_trigger = table(
    "pg_trigger", column("tgrelid"), column("tgname"), column("tgenabled"), schema="pg_catalog"
)


_READS_TABLE = text("""
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
        WHERE d.classid = 'pg_rewrite'::regclass AND r.ev_class = to_regclass(:view)
          AND d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(:base)
    )
""")
"""Whether the guard view is one of the table that has the base table's name."""


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """Where an index is in its life.

    Attributes:
        index_id: Its number in this database.
        state: ``building`` or ``verifying`` (written, not read), ``ready``, or ``failed``.
        kept: Its triggers fire for every writer.
        failure: Why it has failed.
    """

    index_id: int
    state: Literal["building", "verifying", "ready", "failed"]
    kept: bool
    failure: str | None


def index_status(conn: Connection, definition: IndexDefinition) -> IndexStatus:
    """Return the state of the index.

    Raises:
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
        IndexDetachedError: Its triggers aren't on its table.
    """
    known = index_tables(definition.schema).index_table
    found = conn.execute(
        select(
            known.c.index_id,
            known.c.state,
            known.c.fingerprint,
            known.c.failure,
            _triggers(definition).scalar_subquery().label("triggers"),
            _firing(definition).label("kept"),
        ).where(known.c.name == definition.name)
    ).one_or_none()
    if found is None:
        raise IndexMissingError(definition.name)
    if found.fingerprint != fingerprint(definition):
        raise IndexChangedError(definition.name)
    if found.triggers < len(_keeping_triggers(definition)):
        raise _detached(definition)
    return IndexStatus(found.index_id, found.state, found.kept, found.failure)


@cache
def is_ready(definition: IndexDefinition) -> ColumnElement[bool]:
    """Return the condition, for a look-up's own statement, that the index may be read.

    Its values are written into it: to send them anew each time takes longer than the look-up does.
    """
    known = index_tables(definition.schema).index_table
    may_be_read = (
        select(known.c.index_id)
        .where(
            known.c.name == definition.name,
            known.c.state == "ready",
            known.c.fingerprint == fingerprint(definition),
            _firing(definition),
        )
        .exists()
    )
    return literal_column(f"({rendered(may_be_read)})", Boolean)


def require_ready(conn: Connection, definition: IndexDefinition) -> None:
    """Raise unless the index may be read.

    Raises:
        IndexNotReadyError: It is still being built.
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
        IndexDetachedError: Its triggers don't fire for every writer of its table.
    """
    status = require_kept(conn, definition)
    if status.state != "ready":
        raise IndexNotReadyError(definition.name, state=status.state)


def require_kept(conn: Connection, definition: IndexDefinition) -> IndexStatus:
    """Return the state of the index, unless writers pass it by.

    Raises:
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
        IndexDetachedError: Its triggers don't fire for every writer of its table.
    """
    status = index_status(conn, definition)
    if not status.kept:
        raise _detached(definition)
    return status


def require_own_table(conn: Connection, definition: IndexDefinition) -> None:
    """Raise unless the index was built on the table of that name, with that definition.

    Raises:
        IndexMissingError: It was never created in this database.
        IndexChangedError: It was built from another definition.
        IndexDetachedError: Another table has the name now.
    """
    known = index_tables(definition.schema).index_table
    found = conn.scalar(select(known.c.fingerprint).where(known.c.name == definition.name))
    if found is None:
        raise IndexMissingError(definition.name)
    if found != fingerprint(definition):
        raise IndexChangedError(definition.name)
    names = {"view": view_name(definition), "base": table_name(definition.base)}
    if not conn.scalar(_READS_TABLE, names):
        raise _detached(definition)


def _keeping_triggers(definition: IndexDefinition) -> tuple[str, ...]:
    names = capture_triggers if definition.mode == "async" else trigger_names
    return names(definition)


def _triggers(definition: IndexDefinition) -> Select[Any]:
    # The table that the name means here and now: another one may have taken its place.
    # A subquery, or it would be asked for each trigger of the database.
    base = select(func.to_regclass(table_name(definition.base))).scalar_subquery()
    return select(func.count()).where(
        _trigger.c.tgrelid == base, _trigger.c.tgname.in_(_keeping_triggers(definition))
    )


def _firing(definition: IndexDefinition) -> ColumnElement[bool]:
    # Triggers that were disabled and enabled again aren't ALWAYS any more: rows that were
    # written meanwhile are missing until repair() says otherwise.
    enabled = "O" if definition.mode == "reserve" else "A"
    firing = _triggers(definition).where(_trigger.c.tgenabled == enabled).scalar_subquery()
    fires = firing == len(_keeping_triggers(definition))
    if definition.mode != "async":
        return fires
    consumers = change_log_tables(definition.schema).consumers
    follows = select(consumers.c.name).where(consumers.c.name == consumer_name(definition))
    return and_(fires, follows.exists())


def _detached(definition: IndexDefinition) -> IndexDetachedError:
    return IndexDetachedError(definition.name, table=definition.base.fullname)


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
        IsolationLevelError: The transaction keeps an older snapshot, or there is none.
    """
    require_transaction(conn)
    found = conn.exec_driver_sql("SELECT current_setting('transaction_isolation')").scalar_one()
    if found != "read committed":
        raise IsolationLevelError(found=found, needed="read committed")


def require_transaction(conn: Connection) -> None:
    """Raise unless what is done on the connection is done as a whole or not at all.

    Raises:
        IsolationLevelError: It is in autocommit mode.
    """
    driver: Any = conn.connection.dbapi_connection
    if driver.autocommit:
        raise IsolationLevelError(found="autocommit", needed="read committed")
