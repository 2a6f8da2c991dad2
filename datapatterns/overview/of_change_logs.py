"""Logs of changed rows and who follows them, in the words of the overview."""

from sqlalchemy import Connection

from datapatterns.change_log import ChangeLog, ChangeLogStatus, ConsumerStatus, OldestTransaction
from datapatterns.overview.standing import Concern, Standing, lateness

_OLD_SECONDS = 600.0
"""What has been open for longer keeps VACUUM from its work, and consumers from being done."""


def change_log_standings(
    conn: Connection, *, schema: str, late_seconds: float, limit: int
) -> list[Standing]:
    """Return each log's growth, each consumer's distance, and what has been open for long."""
    status = ChangeLog(schema=schema).status(conn, limit=limit)
    consumers = [_consumer(one, late_seconds) for one in status.consumers.values()]
    return [*_logs(status), *consumers, *_open_for_long(status.oldest_transaction)]


def _consumer(one: ConsumerStatus, late_seconds: float) -> Standing:
    concern = lateness(one.behind_seconds, one.pending_rows, late_seconds)
    state, reason, advice = "following", None, None
    if one.is_foreign:
        state, concern = "foreign", Concern.WRONG
        reason = "its snapshot speaks of a database that this one was restored from"
        advice = "call ChangeLog().rebase(conn)"
    elif one.must_rebuild:
        state, concern = "has to begin anew", Concern.WAITING
        reason = one.restart_reason
    elif concern is Concern.WRONG:
        reason, advice = "nobody takes its changes in", "datapatterns worker"
    return Standing(
        pattern="change log",
        name=f"{one.kind} {one.name}",
        database="main",
        state=state,
        concern=concern,
        stale_seconds=one.behind_seconds,
        pending=one.pending_rows,
        reason=reason,
        advice=advice,
    )


def _logs(status: ChangeLogStatus) -> list[Standing]:
    return [
        Standing(
            pattern="change log",
            name=log.table,
            database="main",
            state=f"{log.size_bytes} bytes",
            concern=Concern.WRONG if log.obstacle else Concern.FINE,
            pending=log.rows,
            owner=log.held_back_by,
            reason=log.obstacle,
        )
        for log in status.logs.values()
    ]


def _open_for_long(oldest: OldestTransaction | None) -> list[Standing]:
    if oldest is None or (oldest.seconds or 0.0) <= _OLD_SECONDS:
        return []
    is_prepared = oldest.pid is None
    end_it = "COMMIT PREPARED or ROLLBACK PREPARED"
    return [
        Standing(
            pattern="change log",
            name=f"prepared {oldest.gid!r}" if is_prepared else f"session {oldest.pid}",
            database="main",
            state="open for long",
            concern=Concern.WRONG,
            stale_seconds=oldest.seconds,
            reason="VACUUM makes no room of what was collected since",
            advice=f"let it end, or {end_it if is_prepared else _terminate(oldest.pid)}",
        )
    ]


def _terminate(pid: int | None) -> str:
    return f"SELECT pg_terminate_backend({pid})"
