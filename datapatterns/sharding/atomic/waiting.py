"""Settings of a transaction that is one of several."""

from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal_column, select, true

_MARK = "'datapatterns.part'"


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
    return func.coalesce(func.current_setting(literal_column(_MARK), true()), "") == "on"


@lru_cache(maxsize=64)
def _settings(lock_seconds: float) -> Select[Any]:
    return select(*settings_for_others(lock_seconds))


@lru_cache(maxsize=64)
def settings_for_others(lock_seconds: float) -> tuple[ColumnElement[Any], ...]:
    """Return the expressions that do what `prepare_for_others` does, for another statement."""
    # What is prepared must not be lost in a crash that leaves the decision.
    durability: ColumnElement[Any] = literal_column("'synchronous_commit'")
    written = case(
        (
            func.current_setting(durability) == literal_column("'off'"),
            _set(durability, literal_column("'on'")),
        )
    )
    return _lock_timeout(lock_seconds), written, _set(literal_column(_MARK), literal_column("'on'"))


def _lock_timeout(seconds: float) -> Any:  # noqa: ANN401 -- as SQLAlchemy types functions
    return _set(literal_column("'lock_timeout'"), f"{round(seconds * 1000)}ms")


def _set(name: ColumnElement[Any], value: Any) -> Any:  # noqa: ANN401 -- as above
    return func.set_config(name, value, true())
