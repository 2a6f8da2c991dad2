"""Compute a part of a view anew and apply what is pending to the rest, in one statement.

That is for changes of which logs tell no more than that they are within some partitions. Rows of a
partition are in the view's rows with their partition key and in no others; so all others follow
from what is stored and what is pending, as they do at each refresh. The statement has one
snapshot: the part is what the query gives in it, the rest is what pending changes lead up to.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    Select,
    SmallInteger,
    Table,
    Text,
    cast,
    literal,
    select,
    table,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from datapatterns.change_log import Consumer, Snapshot, Xid8, not_shown_by
from datapatterns.change_log.partition_bounds import Bounds, read_bounds
from datapatterns.change_log.partitions import note_partitions
from datapatterns.materialized_view.maintenance import Logs, Maintenance
from datapatterns.materialized_view.within import (
    Anew,
    PlacedBounds,
    Within,
    either,
    placed,
    within_any,
)

UNPLACED: Final = "its key does not show which partition its rows come from"
TRUNCATED: Final = "a table was truncated, or a row moved to another partition"


class Part(NamedTuple):
    """What of a view has to be computed anew.

    Attributes:
        anew: Which part; None for none, or if that cannot be told.
        partitions: How many partitions' rows these are.
        obstacle: Why all of it has to be; None if the part is enough.
    """

    anew: Anew | None = None
    partitions: int = 0
    obstacle: str | None = None


class _Truncated(NamedTuple):
    log_name: str
    written: str
    bounds: Bounds


class _Unplaced(Exception):  # noqa: N818 -- an answer, which goes no further than this module
    """Says why a part cannot be told."""


def part_to_recompute(
    conn: Connection,
    maintenance: Maintenance,
    logs: Logs,
    consumer: Consumer,
    *,
    schema: str,
    asked: Within | None = None,
) -> Part:
    """Return which part of the view what is pending says nothing of.

    And write down which partitions there are: the transaction goes on to compute that part, or
    all of it.

    Args:
        conn: A connection whose transaction holds the consumer.
        maintenance: What keeps the view.
        logs: Where changes of its tables are.
        consumer: As it was locked.
        schema: Where the library's tables live.
        asked: A part that is computed anew in any case.
    """
    changed = note_partitions(conn, consumer.name, consumer.changed_logs, schema=schema)
    obstacles = [changed[log].obstacle for log in consumer.changed_logs if log in changed]
    if any(obstacles):
        return Part(obstacle=next(filter(None, obstacles)))
    try:
        truncated = [*_read_truncated(conn, logs, consumer.snapshot, schema=schema)]
        parts: dict[PlacedBounds, None] = {}
        for log in consumer.changed_logs:
            parts |= dict.fromkeys(_placed(maintenance, logs, log, changed[log].bounds))
        for one in truncated:
            parts |= dict.fromkeys(_placed(maintenance, logs, one.log_name, [one.bounds]))
    except _Unplaced as obstacle:
        return Part(obstacle=str(obstacle))
    wanted = [] if asked is None else [asked]
    if parts:
        wanted.append(within_any(parts))
    if not wanted:
        return Part()
    told = {
        _only_table(logs, log): frozenset(one.written for one in truncated if one.log_name == log)
        for log in {one.log_name for one in truncated}
    }
    return Part(Anew(either(wanted), told), len(parts))


def _placed(
    maintenance: Maintenance, logs: Logs, log_name: str, bounds: Sequence[Bounds]
) -> list[PlacedBounds]:
    if not bounds:
        return []
    found = placed(bounds, maintenance.places_of(_only_table(logs, log_name)))
    if found is None:
        raise _Unplaced(UNPLACED)
    return found


def _only_table(logs: Logs, log_name: str) -> Table:
    tables = [source for source, log in logs.by_table.items() if log == log_name]
    if len(tables) != 1:
        raise _Unplaced(UNPLACED)
    return tables[0]


def _read_truncated(
    conn: Connection, logs: Logs, since: Snapshot, *, schema: str
) -> Iterator[_Truncated]:
    """Return the partitions that ``since`` does not show to be truncated."""
    for log_name, written, partition in conn.execute(
        union_all(*(_truncated_in(log_name, since, schema) for log_name in logs.names))
    ):
        bounds = read_bounds(partition or ())
        if not bounds:
            raise _Unplaced(TRUNCATED)
        yield _Truncated(log_name, written, bounds)


def _truncated_in(log_name: str, since: Snapshot, schema: str) -> Select[Any]:
    xid, sign = Column("change_xid", Xid8), Column("change_sign", SmallInteger)
    log = table(log_name, xid, sign, Column("change_partition", JSONB), schema=schema)
    return (
        select(
            literal(log_name).label("log_name"),
            cast(log.c.change_partition, Text).label("written"),
            log.c.change_partition,
        )
        .where(log.c.change_sign == 0, not_shown_by(since, log.c.change_xid))
        .distinct()
    )
