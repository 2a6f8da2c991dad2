"""Who holds the readers of the log back?"""

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import INET, OID, TIMESTAMP

from datapatterns.event_sourcing.events import Blocker
from datapatterns.event_sourcing.schema import event_tables

_HALF_OF_THE_KEYS: Final = 2**30
_KEY_BITS: Final = 2**31 - 1
_TWO_INTEGERS = 2  # how pg_locks marks an advisory lock that is named by two integers

_locks = table(
    "pg_locks",
    column("locktype", Text),
    column("database", OID),
    column("classid", OID),
    column("objid", OID),
    column("objsubid", Integer),
    column("pid", Integer),
    column("virtualtransaction", Text),
    column("transactionid"),
    schema="pg_catalog",
)
_sessions = table(
    "pg_stat_activity",
    column("pid", Integer),
    column("state", Text),
    column("xact_start", TIMESTAMP(timezone=True)),
    column("query", Text),
    column("application_name", Text),
    column("client_addr", INET),
    schema="pg_catalog",
)
_prepared = table(
    "pg_prepared_xacts",
    column("transaction"),
    column("gid", Text),
    column("prepared", TIMESTAMP(timezone=True)),
    schema="pg_catalog",
)
_databases = table("pg_database", column("oid", OID), column("datname", Text), schema="pg_catalog")


def list_blockers(conn: Connection, *, schema: str) -> list[Blocker]:
    """Do what `EventStore.blockers` promises."""
    return [Blocker(*row) for row in conn.execute(_blockers_statement(schema))]


@cache
def _blockers_statement(schema: str) -> Select[Any]:
    this_database = (
        select(_databases.c.oid)
        .where(_databases.c.datname == func.current_database())
        .scalar_subquery()
    )
    is_fence = and_(
        _locks.c.locktype == "advisory",
        _locks.c.objsubid == _TWO_INTEGERS,
        _locks.c.classid == cast(event_tables(schema).position_sequence, OID),
        _locks.c.database == this_database,
    )
    # A prepared transaction has no session: an inner join would hide the one that nobody ends. Its
    # number is that of another of its locks, the one on itself.
    itself = _locks.alias("itself")
    is_itself = and_(
        itself.c.locktype == "transactionid",
        itself.c.pid.is_(None),
        _locks.c.pid.is_(None),
        itself.c.virtualtransaction == _locks.c.virtualtransaction,
    )
    is_prepared = cast(_prepared.c.transaction, Text) == cast(itself.c.transactionid, Text)
    # A key has 31 bits, see high_water_mark(); one that lies ahead was taken since we looked.
    drawn = func.pg_sequence_last_value(event_tables(schema).position_sequence, type_=BigInteger)
    behind = (drawn - cast(_locks.c.objid, BigInteger)).op("&", return_type=BigInteger)(_KEY_BITS)
    since = func.coalesce(_sessions.c.xact_start, _prepared.c.prepared)
    return (
        select(
            _locks.c.pid,
            func.coalesce(
                _sessions.c.state,
                case((_prepared.c.gid.is_not(None), "prepared"), else_="unknown"),
            ),
            since,
            _sessions.c.query,
            _prepared.c.gid,
            case((behind < _HALF_OF_THE_KEYS, behind), else_=0),
            func.nullif(_sessions.c.application_name, "", type_=Text),
            func.host(_sessions.c.client_addr, type_=Text),
        )
        .select_from(
            _locks.outerjoin(_sessions, _sessions.c.pid == _locks.c.pid)
            .outerjoin(itself, is_itself)
            .outerjoin(_prepared, is_prepared)
        )
        .where(is_fence)
        .order_by(since)
    )
