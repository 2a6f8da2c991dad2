"""Nobody writes to one copy alone: statements that would are refused, as far as they are seen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.sql.dml import UpdateBase

from datapatterns.errors import BroadcastWriteError
from datapatterns.sharding.routing.placements import Placements

_WRITING_ALL: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
"""Those whose writes go to every copy, and how often that was said: a flush may come in between."""


def guard_copies(engine: Engine, placements: Placements) -> Engine:
    """Refuse writes to broadcast tables on ``engine``, but for those that all copies get.

    SQL text is not looked into.
    """

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def refuse(
        conn: Connection,
        _cursor: DBAPICursor,
        statement: str,
        parameters: object,
        context: ExecutionContext | None,
        _executemany: bool,  # noqa: FBT001 -- as SQLAlchemy calls it
    ) -> tuple[str, object]:
        compiled: Any = getattr(context, "compiled", None)
        if compiled is None or _WRITING_ALL.get(conn):
            return statement, parameters
        ctes = getattr(compiled, "ctes", None) or ()  # DDL has none
        for part in (compiled.statement, *(cte.element for cte in ctes)):
            target = getattr(part, "table", None) if isinstance(part, UpdateBase) else None
            if isinstance(target, Table) and placements.is_broadcast(target):
                raise only_by_sessions(target.name)
        return statement, parameters

    return engine


def only_by_sessions(table: str) -> BroadcastWriteError:
    """Return the error of who would write to one copy."""
    return BroadcastWriteError(
        table,
        "this connection is to one shard, whose copy would differ from all others",
        "write it in a ShardCluster.session()",
    )


@contextmanager
def writing_all(conn: Connection) -> Iterator[None]:
    """Let statements through that all copies will get."""
    allow(conn)
    try:
        yield
    finally:
        disallow(conn)


def allow(conn: Connection) -> None:
    """Begin to let statements through that all copies will get."""
    _WRITING_ALL[conn] = _WRITING_ALL.get(conn, 0) + 1


def disallow(conn: Connection) -> None:
    """Let none through any more, unless somebody further out still does."""
    _WRITING_ALL[conn] -= 1
