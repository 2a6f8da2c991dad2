"""Forget which appends were sent, once nobody sends them again."""

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, func, select

from datapatterns.event_sourcing.log.reading import check_limit
from datapatterns.event_sourcing.schema import event_tables

if TYPE_CHECKING:
    from datapatterns.event_sourcing.store import EventStore


def forget_append_requests(
    conn: Connection, store: "EventStore", *, older_than: timedelta, limit: int = 10_000
) -> int:
    """Delete at most ``limit`` of the oldest keys of appends; return how many. Again until 0.

    An append with `ANY` or `EXISTS` and ``event_ids`` leaves a row, so that a repetition is
    recognised. A repetition that comes after its row was deleted appends once more.

    Args:
        conn: A connection in a transaction, of a role that may delete there. The caller commits.
        store: Whose keys.
        older_than: Longer than any client goes on trying; a day is a good choice.
        limit: The most rows of one transaction.

    Raises:
        ValueError: The age or the limit is not positive.
    """
    check_limit(limit)
    if older_than <= timedelta(0):
        raise ValueError("requests in flight must stay; forget those older than some hours")
    requests = event_tables(store.schema).requests
    oldest = (
        select(requests.c.event_id)
        .where(requests.c.recorded_at < func.now() - older_than)
        .order_by(requests.c.recorded_at)
        .limit(limit)
    )
    done = conn.execute(
        delete(requests).where(requests.c.event_id.in_(oldest)).returning(requests.c.event_id)
    )
    return len(done.all())
