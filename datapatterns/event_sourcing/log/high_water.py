"""Up to where is the log final?

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
    Select,
    Text,
    case,
    column,
    func,
    select,
    table,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.errors import CheckpointError, IsolationLevelError, MarkUnpublishedError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.schema import event_tables

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy's own


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
