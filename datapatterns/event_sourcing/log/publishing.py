"""The high-water mark as a row: for readers that cannot look at fences.

Who sees the row sees every event up to it: the writers had committed before the mark was taken,
and so before the row was. That holds in a snapshot of any age, and on a standby, which replays
commits in their order.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, Text, case, func, select

from datapatterns.errors import IsolationLevelError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.schema import event_tables
from datapatterns.event_sourcing.store import EventStore


@dataclass(frozen=True, slots=True)
class PublishedMark:
    """Up to where everybody may read.

    Attributes:
        at: When it was looked at; while somebody publishes, it is about a second old at most.
    """

    position: Position
    at: datetime


def publish_mark(conn: Connection, store: EventStore) -> Position:
    """Store the mark of now and return it; call it again and again, in short transactions.

    It writes if the mark has moved, or once in a second, and makes sure that its commit is flushed
    like one with ``synchronous_commit`` on: readers may keep checkpoints elsewhere.

    Args:
        conn: A connection in a transaction. The caller commits.
        store: Whose.

    Raises:
        IsolationLevelError: The transaction is not READ COMMITTED.
    """
    mark, isolation = conn.execute(_publish_statement(store.schema)).one()
    if mark is None:
        raise IsolationLevelError(found=isolation, needed="read committed")
    return Position(mark)


def published_mark(conn: Connection, store: EventStore) -> PublishedMark | None:
    """Return the mark that was published last, and when; None if none was."""
    marks = event_tables(store.schema).marks
    found = conn.execute(select(marks.c.position, marks.c.at)).one_or_none()
    return found and PublishedMark(Position(found.position), found.at)


@cache
def _publish_statement(schema: str) -> Select[Any]:
    isolation = func.current_setting("transaction_isolation", type_=Text)
    publish = event_tables(schema).function("publish_mark", returns=BigInteger())
    return select(case((isolation == "read committed", publish)), isolation)
