"""Do something once a caller's transaction has committed, and nothing if it has not.

SQLAlchemy tells of a COMMIT before it is sent. So what is to be done waits until the connection
begins its next transaction, or goes back to its pool: then the COMMIT lies behind.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, event

_PLACE: Final = "datapatterns.after_commit"


@dataclass(slots=True)
class _Waiting:
    """What one connection to the database will have to do.

    Attributes:
        actions: To be done if the open transaction commits.
        committed: To be done as soon as the COMMIT lies behind.
    """

    actions: list[Callable[[], object]] = field(default_factory=list)
    committed: list[Callable[[], object]] = field(default_factory=list)

    def settle(self) -> None:
        self.committed += self.actions
        self.actions = []

    def run(self) -> None:
        committed, self.committed, self.actions = self.committed, [], []
        for action in committed:
            action()


def after_commit(conn: Connection, action: Callable[[], object]) -> None:
    """Call ``action`` after the transaction of ``conn`` has committed.

    A COMMIT that fails calls it, too: it must find out for itself what is there. It must not raise.

    Args:
        conn: A connection in a transaction.
        action: Called in whatever thread gives the connection back, so it must be quick.
    """
    waiting = conn.info.get(_PLACE)
    if not isinstance(waiting, _Waiting):
        waiting = conn.info[_PLACE] = _Waiting()
    waiting.actions.append(action)
    # A listener is one for its name and function: each is added once.
    for name, listener in _LISTENERS.items():
        if not event.contains(conn, name, listener):
            event.listen(conn, name, listener)
    pool = conn.engine.pool
    if not event.contains(pool, "checkin", _given_back):
        event.listen(pool, "checkin", _given_back)


def _committing(conn: Connection, *_: object) -> None:
    waiting = conn.info.get(_PLACE)
    if isinstance(waiting, _Waiting):
        waiting.settle()


def _rolled_back(conn: Connection, *_: object) -> None:
    waiting = None if conn.closed or conn.invalidated else conn.info.get(_PLACE)
    if isinstance(waiting, _Waiting):
        waiting.actions.clear()


def _begun(conn: Connection, *_: object) -> None:
    waiting = conn.info.get(_PLACE)
    if isinstance(waiting, _Waiting):
        waiting.run()


def _given_back(_connection: object, record: Any) -> None:  # noqa: ANN401 -- of the pool
    waiting = record.info.pop(_PLACE, None)
    if isinstance(waiting, _Waiting):
        waiting.run()


_LISTENERS: Final[dict[str, Callable[..., None]]] = {
    "begin": _begun,
    "commit": _committing,
    "rollback": _rolled_back,
    "commit_twophase": _committing,
    "rollback_twophase": _rolled_back,
}
