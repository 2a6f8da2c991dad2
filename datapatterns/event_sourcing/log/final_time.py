"""Before which instant can no event appear any more?"""

from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Text,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS, TIMESTAMP

from datapatterns.errors import IsolationLevelError
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore

_MOMENT: Final = TIMESTAMP(timezone=True)
_NOBODY_KNOWS: Final = literal_column("'-infinity'::timestamptz", _MOMENT)

_locks = table(
    "pg_locks",
    column("relation", OID),
    column("database", OID),
    column("mode", Text),
    column("pid", Integer),
    schema="pg_catalog",
)
_sessions = table(
    "pg_stat_activity",
    column("pid", Integer),
    column("xact_start", _MOMENT),
    schema="pg_catalog",
)
_databases = table("pg_database", column("oid", OID), column("datname", Text), schema="pg_catalog")


def final_until(conn: Connection, store: EventStore) -> datetime | None:
    """Return the instant before which no event can appear any more.

    An answer about several streams as of an earlier time is final if it comes from a later
    statement than this. Across streams times do not rise with positions: filter by time, never
    stop at a position. Imports with times of their own aside, and clocks that are set back.

    Call it in a transaction of its own, under READ COMMITTED and on the primary.

    Returns:
        None if nobody can tell: a transaction is prepared, or this role may not see since when
        others are open, or the server is a standby.

    Raises:
        IsolationLevelError: The transaction is not READ COMMITTED, so it may not see what was
            committed before.
    """
    until, isolation = conn.execute(_final_statement(store.schema)).one()
    if isolation != "read committed":
        raise IsolationLevelError(found=isolation, needed="read committed")
    return until  # type: ignore[no-any-return] # of a typed column


@cache
def _final_statement(schema: str) -> Select[Any]:
    tables = event_tables(schema)
    # Whoever writes to one of these has locked it before it took the time of its events: an import
    # first records its chunk. Who locks it after the scan takes a later time.
    written = [
        cast(cast(f"{schema}.{written.name}", REGCLASS), OID)
        for written in (tables.streams, tables.events, tables.import_chunks)
    ]
    this_database = (
        select(_databases.c.oid)
        .where(_databases.c.datname == func.current_database())
        .scalar_subquery()
    )
    writers = (
        select(
            # A prepared transaction has no session, and some roles do not see when one began.
            func.min(func.coalesce(_sessions.c.xact_start, _NOBODY_KNOWS), type_=_MOMENT)
        )
        .select_from(_locks.outerjoin(_sessions, _sessions.c.pid == _locks.c.pid))
        .where(
            _locks.c.mode == "RowExclusiveLock",
            _locks.c.relation.in_(written),
            # Databases that were cloned from one template have tables of the same numbers.
            _locks.c.database == this_database,
        )
        .scalar_subquery()
    )
    # The statement's own time, not that of the clock, which would be read after the scan.
    until = func.coalesce(writers, func.statement_timestamp(type_=_MOMENT))
    is_known = ~func.pg_is_in_recovery() & (until > _NOBODY_KNOWS)
    return select(
        case((is_known, until)), func.current_setting("transaction_isolation", type_=Text)
    )
