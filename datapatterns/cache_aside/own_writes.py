"""Know what a transaction has invalidated and not committed: it shall see its own writes.

What a cache holds is right for everybody else. To know too much does no harm, so what a savepoint
rolled back stays known until the transaction ends.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from psycopg import BaseConnection, IsolationLevel
from sqlalchemy import Connection, RootTransaction
from sqlalchemy.orm import Session, SessionTransaction

Writer: TypeAlias = Connection | Session


class Within(NamedTuple):
    """A transaction that has to see for itself.

    Attributes:
        conn: Its connection.
        has_written: Whether it has invalidated what it reads. Else it sees one moment only.
    """

    conn: Connection
    has_written: bool


# By transactions, so that nothing need be forgotten when one ends: to listen for that costs each
# connection more than its write.
_written: WeakKeyDictionary[RootTransaction | SessionTransaction, set[str]] = WeakKeyDictionary()


def note_write(writer: Writer, conn: Connection, names: Iterable[str]) -> None:
    """Remember what a transaction invalidates, until it ends.

    Args:
        writer: Who writes.
        conn: The connection that it writes on.
        names: What tells entries and tags of all caches apart.
    """
    for transaction in _transactions(writer, conn):
        _written.setdefault(transaction, set()).update(names)


def has_written(writer: Writer, conn: Connection, names: Iterable[str]) -> bool:
    """Return whether the transaction of ``writer`` has invalidated one of ``names``."""
    known = (_written.get(each, ()) for each in _transactions(writer, conn))
    return not set().union(*known).isdisjoint(names)


def keeps_its_snapshot(conn: Connection) -> bool:
    """Return whether the transaction sees one moment only, which a cache knows nothing of.

    As the driver was told; what SQL text sets for one transaction is not known.
    """
    driver = conn.connection.driver_connection
    level = driver.isolation_level if isinstance(driver, BaseConnection) else None
    if level is None:
        return conn.default_isolation_level in {"REPEATABLE READ", "SERIALIZABLE"}
    return level in {IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE}


def _transactions(
    writer: Writer, conn: Connection
) -> Iterator[RootTransaction | SessionTransaction]:
    for who in dict.fromkeys((writer, conn)):
        if (transaction := who.get_transaction()) is not None:
            yield transaction
