"""Bounds for waiting: a circle over two servers is seen by none of them."""

from sqlalchemy import Connection, func, select


def wait_for_locks_at_most(conn: Connection, *, seconds: float) -> None:
    """Let the transaction of ``conn`` fail when a lock is not had so soon."""
    conn.execute(select(func.set_config("lock_timeout", f"{round(seconds * 1000)}ms", True)))
