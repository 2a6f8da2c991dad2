"""Bound what is kept for somebody who stands still."""

import logging
from collections.abc import Mapping

from sqlalchemy import Connection, select, update

from datapatterns.change_log.collecting import require_own_snapshots
from datapatterns.change_log.consuming import require_read_committed, snapshot_without_own_changes
from datapatterns.change_log.lagging import count_pending, followed_logs
from datapatterns.change_log.locking import hold_logs
from datapatterns.change_log.schema import change_log_tables

_logger = logging.getLogger(__name__)


def restart_laggards(conn: Connection, *, schema: str, pending_rows_max: int) -> Mapping[str, int]:
    """Let consumers begin anew that have more changes to take in; return how many each had.

    That is the bound on growth: what is kept for somebody who stands still. Such a consumer counts
    as not populated, its target has to be filled again, and what was kept for it is garbage. From
    half of the limit on there are warnings; nobody begins anew without one. Who is at work on its
    changes is left alone.

    Args:
        conn: A connection in a transaction. The caller commits.
        schema: Where the library's tables live.
        pending_rows_max: How many changes may be kept for a consumer, in all its logs together.

    Raises:
        ForeignSnapshotError: A consumer was last advanced in another database.
        IsolationLevelError: The transaction is not READ COMMITTED.
        ValueError: The limit is less than 1.
    """
    if pending_rows_max < 1:
        raise ValueError("pending_rows_max has to be 1 or more")
    require_read_committed(conn)
    require_own_snapshots(conn, schema)
    hold_logs(conn, schema=schema)
    held: dict[str, int | None] = {}
    for name, log_names in followed_logs(conn, schema=schema).items():
        pending = count_pending(conn, name, log_names, schema=schema, limit=pending_rows_max + 1)
        known = {"consumer": name, "pending_rows_max": pending_rows_max}
        if pending > pending_rows_max:
            held[name] = _hold(conn, name, log_names, schema=schema)
        elif 2 * pending > pending_rows_max:
            _logger.warning(
                "consumer %s has %d changes to take in; beyond %d it has to begin anew",
                name, pending, pending_rows_max, extra=known,
            )  # fmt: skip
    restarted: dict[str, int] = {}
    for name, counted in held.items():
        known = {"consumer": name, "pending_rows_max": pending_rows_max}
        if counted is None:
            _logger.warning(
                "consumer %s has more than %d changes to take in, and is at work on them",
                name, pending_rows_max, extra=known,
            )  # fmt: skip
        elif counted > pending_rows_max:
            _restart(conn, name, counted, schema=schema, pending_rows_max=pending_rows_max)
            restarted[name] = counted
            _logger.warning(
                "consumer %s had more than %d changes to take in and begins anew; fill its target"
                " again",
                name, pending_rows_max, extra=known,
            )  # fmt: skip
    return restarted


def _hold(conn: Connection, name: str, log_names: list[str], *, schema: str) -> int | None:
    """Lock a consumer and return how much is pending; None if somebody else has it.

    Nobody is waited for with what this has locked.
    """
    tables = change_log_tables(schema)
    consumers, subscriptions = tables.consumers.c, tables.subscriptions.c
    lock = select(consumers.name).where(consumers.name == name)
    if conn.scalar(lock.with_for_update(skip_locked=True)) is None:
        return None
    # Who changes what is captured has some of these, and may come for others that are ours.
    own = select(subscriptions.log_name).where(subscriptions.consumer == name)
    if len(conn.scalars(own.with_for_update(skip_locked=True)).all()) < len(log_names):
        return None
    # It may have been advanced until it was ours; a later statement sees that.
    return count_pending(conn, name, log_names, schema=schema)


def _restart(
    conn: Connection, name: str, pending: int, *, schema: str, pending_rows_max: int
) -> None:
    tables = change_log_tables(schema)
    conn.execute(
        update(tables.consumers)
        .where(tables.consumers.c.name == name)
        .values(
            snapshot=snapshot_without_own_changes(conn),
            populated=False,
            restart_reason=f"{pending} changes were pending, of {pending_rows_max} at most",
        )
    )
    conn.execute(
        update(tables.subscriptions)
        .where(tables.subscriptions.c.consumer == name)
        .values(shape=None)
    )
