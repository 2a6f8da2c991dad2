"""Settings of a transaction that is one of several."""

from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, select

_MARK = "datapatterns.part"


def wait_for_locks_at_most(conn: Connection, *, seconds: float) -> None:
    """Let the transaction of ``conn`` fail when a lock is not had so soon.

    A circle of waiting over two servers is seen by none of them.
    """
    conn.execute(select(_lock_timeout(seconds))).close()


def prepare_for_others(conn: Connection, *, lock_seconds: float) -> None:
    """Bound waiting, and make sure that what is prepared is on the disk, in one round trip."""
    conn.execute(_settings(lock_seconds)).close()


def is_as_prepared() -> ColumnElement[bool]:
    """Return whether this is the transaction still that `prepare_for_others` was called in.

    SQL text may have ended it, and another one may have begun.
    """
    return func.coalesce(func.current_setting(_MARK, True), "") == "on"


@lru_cache(maxsize=64)
def _settings(lock_seconds: float) -> Select[Any]:
    # What is prepared must not be lost in a crash that leaves the decision.
    written = case(
        (
            func.current_setting("synchronous_commit") == "off",
            func.set_config("synchronous_commit", "on", True),
        )
    )
    mark = func.set_config(_MARK, "on", True)
    return select(_lock_timeout(lock_seconds), written, mark)


def _lock_timeout(seconds: float) -> Any:  # noqa: ANN401 -- as SQLAlchemy types functions
    return func.set_config("lock_timeout", f"{round(seconds * 1000)}ms", True)
