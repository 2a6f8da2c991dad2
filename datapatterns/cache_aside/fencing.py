"""Put fences up around what a transaction has made obsolete, right before its COMMIT is sent.

SQLAlchemy's ``commit`` event of a connection comes just then: after the last flush of a session,
and for whoever commits, in whichever colour. An error in it would leave the transaction open on a
connection that goes back to its pool, so it is rolled back here.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, RootTransaction, TwoPhaseTransaction, event
from sqlalchemy.engine import AdaptedConnection, ExceptionContext

from datapatterns.errors import SettingsError
from datapatterns.failpoints import failpoint
from datapatterns.outcomes import is_unknown


class Fence(Protocol):
    """What keeps others from being served or storing what is about to become obsolete."""

    def put_up(self) -> None:
        """Return once it stands, or raise."""
        ...

    def take_down(self) -> None:
        """Let others store again: nothing has become obsolete."""
        ...


F = TypeVar("F", bound=Fence)

# By transactions, and heard of by engines: to listen to each connection costs more than a fence.
_planned: WeakKeyDictionary[RootTransaction, dict[object, Any]] = WeakKeyDictionary()
_standing: WeakKeyDictionary[RootTransaction, list[Fence]] = WeakKeyDictionary()
_engines: WeakSet[Engine] = WeakSet()


def fence_before_commit(conn: Connection, owner: object, make: Callable[[], F]) -> F:
    """Return the fence that has to stand before the transaction of ``conn`` can commit.

    A COMMIT that the server refuses takes it down. After one whose outcome nobody knows it stands
    until its time is up, as it does after a crash.

    Args:
        conn: Who commits.
        owner: Whose fence it is; each has one around a transaction.
        make: Makes it.

    Raises:
        SettingsError: The transaction is one with two phases, the second of which may be far off.
    """
    transaction = conn.get_transaction()
    assert transaction is not None
    if isinstance(transaction, TwoPhaseTransaction):
        raise SettingsError(
            "strict",
            "a fence cannot stand until a prepared transaction is committed; commit in one phase,"
            " or write through a cache without strict=True",
        )
    if conn.engine not in _engines:
        event.listen(conn.engine, "commit", _put_up)
        event.listen(conn.engine, "handle_error", _take_down_if_refused)
        _engines.add(conn.engine)
    planned = _planned.setdefault(transaction, {})
    if owner not in planned:
        planned[owner] = make()
    fence: F = planned[owner]
    return fence


def _put_up(conn: Connection) -> None:
    transaction = conn.get_transaction()
    planned = None if transaction is None else _planned.pop(transaction, None)
    if transaction is None or planned is None:
        return
    fences: list[Fence] = [*planned.values()]
    tried: list[Fence] = []
    try:
        for fence in fences:
            tried.append(fence)
            _block(conn, fence.put_up)
    except BaseException as error:
        _roll_back(conn)
        if isinstance(error, Exception):  # who is cancelled does not wait for Redis
            for fence in tried:
                _block(conn, fence.take_down)
        raise
    _standing[transaction] = fences
    failpoint("cache.write-fenced")


def _take_down_if_refused(context: ExceptionContext) -> None:
    conn = context.connection
    transaction = None if conn is None else conn.get_transaction()
    if conn is None or transaction is None or is_unknown(context.original_exception):
        return
    for fence in _standing.pop(transaction, ()):
        _block(conn, fence.take_down)


def _roll_back(conn: Connection) -> None:
    try:
        conn.connection.rollback()
    except Exception:  # noqa: BLE001 -- whatever it is, the server rolls back without a connection
        conn.invalidate()


def _block(conn: Connection, act: Callable[[], None]) -> None:
    """Wait for Redis, without holding up an event loop."""
    dbapi_connection: Any = conn.connection.dbapi_connection
    if isinstance(dbapi_connection, AdaptedConnection):
        dbapi_connection.run_async(lambda _: asyncio.to_thread(act))
    else:
        act()
