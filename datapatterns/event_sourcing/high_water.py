"""Up to where is the log final? And who holds it back?

A position is drawn at INSERT but shows at COMMIT, so events can still appear behind the newest one
visible. Every appender therefore raises a *fence* first: a shared advisory lock whose key lies
below all positions that it will draw. A reader stops at the lowest fence. No writer waits for
another, rolled-back positions and transactions that write other tables hold back nobody.
"""

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
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
from sqlalchemy.dialects.postgresql import OID, TIMESTAMP
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.errors import CheckpointError, IsolationLevelError, MarkUnpublishedError
from datapatterns.event_sourcing.events import Blocker, Position
from datapatterns.event_sourcing.schema import event_tables

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own
_TWO_INTEGERS = 2  # how pg_locks marks an advisory lock that is named by two integers

_locks = table(
    "pg_locks",
    column("locktype", Text),
    column("database", OID),
    column("classid", OID),
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


def read_mark(
    conn: Connection, *, schema: str, after: Position, published: bool = False
) -> Position:
    """Do what `EventStore.high_water_mark` promises, for a reader that got to ``after``."""
    mark = (
        _published_mark(conn, schema=schema, after=after)
        if published
        else _present_mark(conn, schema=schema, after=after)
    )
    return Position(mark)


def read_hint(conn: Connection, *, schema: str, published: bool) -> Position:
    """Return a position that moves when the log may go on, at the least cost.

    It is no bound of anything: while ``nextval`` writes its log record, the row shows up to 32
    positions that nobody has drawn yet.
    """
    return Position(
        conn.exec_driver_sql(*_hint_statement(schema, published=published)).scalar() or 0
    )


def _present_mark(conn: Connection, *, schema: str, after: Position) -> int:
    mark, isolation, drawn = conn.exec_driver_sql(*_mark_statement(schema)).one()
    if mark is None:
        raise IsolationLevelError(found=isolation, needed="read committed")
    if after > drawn:
        raise CheckpointError(checkpoint=after, drawn=drawn)
    return int(mark)


def _published_mark(conn: Connection, *, schema: str, after: Position) -> int:
    published = conn.exec_driver_sql(*_published_statement(schema)).one_or_none()
    if published is None:
        raise MarkUnpublishedError
    mark, drawn = published
    # A standby may be behind a checkpoint of the primary, so it cannot tell.
    if drawn is not None and max(mark, after) > drawn:
        raise CheckpointError(checkpoint=max(mark, after), drawn=drawn)
    return int(mark)


def list_blockers(conn: Connection, *, schema: str) -> list[Blocker]:
    """Do what `EventStore.blockers` promises."""
    return [Blocker(*row) for row in conn.execute(_blockers_statement(schema))]


@cache
def _mark_statement(schema: str) -> tuple[str, dict[str, Any]]:
    isolation = func.current_setting("transaction_isolation", type_=Text)
    mark = event_tables(schema).function("high_water_mark", returns=BigInteger())
    # The function refuses other isolation levels, too; asked like this, the refusal leaves the
    # caller's transaction usable.
    return _compiled(select(case((isolation == "read committed", mark)), isolation, _drawn(schema)))


@cache
def _published_statement(schema: str) -> tuple[str, dict[str, Any]]:
    marks = event_tables(schema).marks
    drawn = case((func.pg_is_in_recovery(type_=Boolean), None), else_=_drawn(schema))
    return _compiled(select(marks.c.position, drawn))


@cache
def _hint_statement(schema: str, *, published: bool) -> tuple[str, dict[str, Any]]:
    if published:
        return _compiled(select(event_tables(schema).marks.c.position))
    sequence = table(event_tables(schema).position.name, column("last_value"), schema=schema)
    return _compiled(select(sequence.c.last_value))


def _drawn(schema: str) -> ColumnElement[int]:
    return func.pg_sequence_last_value(event_tables(schema).position_sequence, type_=BigInteger)


def _compiled(statement: Select[Any]) -> tuple[str, dict[str, Any]]:
    # By the driver's own statement: Core's execute costs as much again as the round trip.
    compiled = statement.compile(dialect=_DIALECT)
    return str(compiled), dict(compiled.params)


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
        )
        .select_from(
            _locks.outerjoin(_sessions, _sessions.c.pid == _locks.c.pid)
            .outerjoin(itself, is_itself)
            .outerjoin(_prepared, is_prepared)
        )
        .where(is_fence)
        .order_by(since)
    )
