"""Forget which commands were executed, once nobody repeats them."""

from datetime import timedelta

from sqlalchemy import Connection, delete, func, select, tuple_

from datapatterns.cqrs.schema import command_executions
from datapatterns.event_sourcing import EventStore
from datapatterns.event_sourcing.log.reading import check_limit


def forget_executions(
    conn: Connection,
    store: EventStore,
    *,
    older_than: timedelta,
    limit: int = 10_000,
    dry_run: bool = False,
) -> int:
    """Delete at most ``limit`` of the oldest idempotency keys; return how many. Again until 0.

    A command that is repeated after its key was deleted is executed once more.

    Args:
        conn: A connection in a transaction, of a role that may delete there. The caller commits.
        store: Whose keys.
        older_than: Longer than any client goes on trying; some days are a good choice.
        limit: The most rows of one transaction.
        dry_run: Delete nothing; return how many it would be.

    Raises:
        ValueError: The age or the limit is not positive.
    """
    check_limit(limit)
    if older_than <= timedelta(0):
        raise ValueError("commands in flight must stay; forget those older than some days")
    executions = command_executions(store.schema)
    oldest = (
        select(executions.c.tenant, executions.c.key)
        .where(executions.c.executed_at < func.now() - older_than)
        .order_by(executions.c.executed_at)
        .limit(limit)
    )
    if dry_run:
        return int(conn.execute(select(func.count()).select_from(oldest.subquery())).scalar_one())
    done = conn.execute(
        delete(executions)
        .where(tuple_(executions.c.tenant, executions.c.key).in_(oldest))
        .returning(executions.c.key)
    )
    return len(done.all())
