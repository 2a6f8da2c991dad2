"""Remember what a transaction invalidated until it has committed, then act on it.

SQLAlchemy's ``commit`` event of a connection comes before the commit: whoever deleted then would
invite readers to load the old row again. So a connection's commit is made here, and a session
tells of its own.

To invalidate too much does no harm, so what a savepoint rolled back stays on the list.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from datapatterns.failpoints import failpoint
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.transactions import committing

AfterCommit: TypeAlias = Callable[[bool], None]
"""Called with whether the transaction has committed for certain; else it may have, or may yet."""

_of_connections: WeakKeyDictionary[Connection, list[AfterCommit]] = WeakKeyDictionary()
_of_sessions: WeakKeyDictionary[Session, list[tuple[Connection, AfterCommit]]] = WeakKeyDictionary()


@contextmanager
def collecting(conn: Connection) -> Iterator[list[AfterCommit]]:
    """Collect what is to be done once the transaction of ``conn`` has committed."""
    collected: list[AfterCommit] = []
    _of_connections[conn] = collected
    try:
        yield collected
    finally:
        del _of_connections[conn]


def act_on(acts: Iterable[AfterCommit], *, is_certain: bool = True) -> None:
    """Do all that was collected."""
    for act in acts:
        act(is_certain)


def committed_writes(conn: Connection, attempted: str) -> Iterator[Connection]:
    """Yield ``conn`` in a transaction, commit it, and do at once what was collected.

    Raises:
        AbortedTransactionError: An error was caught meanwhile, so nothing can be committed.
        OutcomeUnknownError: The COMMIT was sent and its answer was lost.
    """
    acts: list[AfterCommit] = []
    try:
        with committing(conn, attempted), collecting(conn) as acts:
            yield conn
    except BaseException as error:
        if find_unknown_outcome(error) is not None:
            # To forget too much does no harm; what commits later, the relay tells.
            act_on(acts, is_certain=False)
        raise
    failpoint("cache.write-committed")
    act_on(acts)


def connection_of(bind: Engine | Connection) -> AbstractContextManager[Connection]:
    """Return a connection to write on: one that is given stays open."""
    return nullcontext(bind) if isinstance(bind, Connection) else bind.connect()


def after_commit(writer: Connection | Session, conn: Connection, act: AfterCommit) -> None:
    """Do ``act`` once the transaction of ``writer`` has committed, if anybody learns of it.

    Nobody does for a connection that is not ``collecting``: the relay acts in its place.

    Args:
        writer: Who commits.
        conn: The connection that it writes on.
        act: What to do.
    """
    if isinstance(writer, Connection):
        _leave_to(conn, act)
        return
    if writer not in _of_sessions:
        event.listen(writer, "after_commit", _act)
        event.listen(writer, "after_transaction_end", _forget)
        _of_sessions[writer] = []
    _of_sessions[writer].append((conn, act))


def _leave_to(conn: Connection, act: AfterCommit) -> None:
    if (collected := _of_connections.get(conn)) is not None:
        collected.append(act)


def _act(session: Session) -> None:
    # This comes for a released savepoint, too: nothing has committed then.
    if session.get_nested_transaction() is None:
        collected, _of_sessions[session] = _of_sessions[session], []
        for conn, act in collected:
            if conn.in_transaction():  # the session has joined it; another will commit it
                _leave_to(conn, act)
            else:
                act(True)


def _forget(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        _of_sessions[session] = []
