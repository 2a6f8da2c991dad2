"""How many logged changes each consumer has yet to take in."""

from collections.abc import Iterable

from sqlalchemy import Column, ColumnElement, Connection, func, literal, select, table

from datapatterns.change_log.pending import pending_for
from datapatterns.change_log.schema import Xid8, change_log_tables


def followed_logs(conn: Connection, *, schema: str) -> dict[str, list[str]]:
    """Return the logs that each consumer follows, consumers in the order of their names."""
    tables = change_log_tables(schema)
    rows = conn.execute(
        select(tables.consumers.c.name, tables.subscriptions.c.log_name)
        .outerjoin(tables.subscriptions)
        .order_by(tables.consumers.c.name, tables.subscriptions.c.log_name)
    )
    followed: dict[str, list[str]] = {}
    for name, log_name in rows:
        followed.setdefault(name, []).extend([] if log_name is None else [log_name])
    return followed


def count_pending(
    conn: Connection,
    consumer: str,
    log_names: Iterable[str],
    *,
    schema: str,
    limit: int | None = None,
) -> int:
    """Return how many changes ``consumer`` has to take in, counted up to ``limit``."""
    total: ColumnElement[int] = literal(0)
    for log_name in log_names:
        log = table(log_name, Column("change_xid", Xid8), schema=schema)
        rows = (
            select(log.c.change_xid)
            .where(pending_for(consumer, log.c.change_xid, schema=schema))
            .limit(limit)
        )
        total = total + select(func.count()).select_from(rows.subquery()).scalar_subquery()
    counted = conn.execute(select(total)).scalar_one()
    return counted if limit is None else min(counted, limit)
