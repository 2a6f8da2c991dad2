"""Which partitions of captured tables came, went or changed, so that the rest need not be read.

A shape (see `shapes`) says that something about a table has changed that no trigger tells of. Most
of what does so is about one partition; and its rows, those that it had and those that it has, are
within its bounds. So next to the shape each consumer keeps what the catalogue said of every
partition, also from before everything was read anew, and compares.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, case, exists, select, update

from datapatterns.change_log.partition_bounds import Bounds, read_bounds
from datapatterns.change_log.schema import change_log_tables
from datapatterns.change_log.shapes import capture_partitions, capture_shape

UNKNOWN: Final = "it is not known which partitions it had"
WHOLE: Final = "more than single partitions changed"
UNBOUNDED: Final = "a default partition, or one by hash or an expression, changed"


@dataclass(frozen=True, slots=True)
class ChangedPartitions:
    """Which rows of a captured table are not told of by its log.

    Attributes:
        bounds: Those of each partition that came, went, changed, or is not captured; both the old
            and the new ones.
        obstacle: Why that is not all; None if it is.
    """

    bounds: tuple[Bounds, ...] = ()
    obstacle: str | None = None


def note_partitions(
    conn: Connection, consumer: str, log_names: Iterable[str], *, schema: str
) -> dict[str, ChangedPartitions]:
    """Write down which partitions there are, and return what has changed since it was done last.

    In a transaction that holds the consumer, before it reads anew what changed, by a statement
    that is planned later: that one then reads the partitions that are written down.
    """
    subscriptions = change_log_tables(schema).subscriptions
    own = and_(subscriptions.c.consumer == consumer, subscriptions.c.log_name.in_([*log_names]))
    before = select(subscriptions.c.log_name, subscriptions.c.partitions).where(own).cte("before")
    rows = conn.execute(
        update(subscriptions)
        .where(own, before.c.log_name == subscriptions.c.log_name)
        .values(partitions=capture_partitions(subscriptions.c.log_name, schema=schema))
        .returning(subscriptions.c.log_name, before.c.partitions, subscriptions.c.partitions)
    )
    return {row[0]: changed_partitions(row[1], row[2]) for row in rows}


def is_as_noted(conn: Connection, consumer: str, log_names: Iterable[str], *, schema: str) -> bool:
    """Return whether nothing has changed since `note_partitions`, nor of the consumer's other logs.

    Changes of a partition that is not captured still go unlogged.
    """
    subscriptions = change_log_tables(schema).subscriptions
    log_name = subscriptions.c.log_name
    differs = case(
        (
            log_name.in_([*log_names]),
            subscriptions.c.partitions.is_distinct_from(
                capture_partitions(log_name, schema=schema)
            ),
        ),
        else_=subscriptions.c.shape.is_distinct_from(capture_shape(log_name, schema=schema)),
    )
    found = exists().where(subscriptions.c.consumer == consumer, differs)
    return not conn.execute(select(found)).scalar_one()


def changed_partitions(
    before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> ChangedPartitions:
    """Return which partitions differ; the function ``capture_partitions`` has written both."""
    if before is None or now is None:
        return ChangedPartitions(obstacle=UNKNOWN)
    table, old, new = now["table"], before["members"], now["members"]
    if before["table"] != table or old[table] != new[table]:
        return ChangedPartitions(obstacle=WHOLE)
    bounds: list[Bounds] = []
    for oid in sorted({*old, *new} - {table}, key=int):
        if oid in old and oid in new and old[oid] == new[oid] and new[oid]["fact"] is not None:
            continue
        bounds += [read_bounds(side[oid]["bounds"]) for side in (old, new) if oid in side]
    if not all(bounds):
        return ChangedPartitions(obstacle=UNBOUNDED)
    return ChangedPartitions(tuple(_outermost(bounds)))


def _outermost(bounds: Iterable[Bounds]) -> list[Bounds]:
    """Return the bounds without those of partitions of partitions that are among them."""
    found: list[Bounds] = []
    for each in sorted(set(bounds), key=len):
        if not any(each[: len(other)] == other for other in found):
            found.append(each)
    return found
