"""What a page of events does to rows; without a database."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datapatterns.cqrs.definition import DELETE, AnyProjection, Handler, Projection
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.event_sourcing.recorded import RecordedEvent

Rows = dict[Hashable, Any]
"""Rows by primary key; None where there is none, or none any more."""

RowsByTable = dict[type, Rows]
"""The rows of each of a projection's tables, by its mapped class."""


@dataclass(frozen=True, slots=True)
class Step:
    """One event that concerns one row of one table."""

    handler: Handler
    table: type
    key: Hashable
    event: object
    meta: RecordedEvent


def plan_steps(
    projection: Projection,
    decoded: Iterable[tuple[object, RecordedEvent]],
    segment: Segment = WHOLE,
) -> list[Step]:
    """Return which handler each event meets and for which row, in the order of the log.

    Only rows whose keys ``segment`` owns are among them.
    """
    handlers = handlers_by_class(projection)
    tables = {handler: projection.table_of(handler) for handler in projection.handlers}
    return [
        Step(handler, tables[handler], key, event, meta)
        for event, meta in decoded
        for handler in handlers.get(type(event), ())
        for key in dict.fromkeys((handler.keys or _no_keys)(event, meta))
        if segment.owns(key)
    ]


def handlers_by_class(projection: AnyProjection) -> dict[type, list[Handler]]:
    """Return the handlers that an event's class meets, in the order they were declared."""
    handlers: dict[type, list[Handler]] = {}
    for handler in projection.handlers:
        handlers.setdefault(handler.event_class, []).append(handler)
    return handlers


def keys_by_table(steps: Iterable[Step]) -> dict[type, list[Hashable]]:
    """Return the keys that ``steps`` concern, by table, each once."""
    keys: dict[type, dict[Hashable, None]] = {}
    for step in steps:
        keys.setdefault(step.table, {})[step.key] = None
    return {table: list(of_table) for table, of_table in keys.items()}


def fold_steps(
    projection: AnyProjection,
    steps: Sequence[Step],
    rows: RowsByTable,
    *,
    new_row: Mapping[type, Callable[[Hashable], Any]],
) -> None:
    """Let ``steps`` change ``rows`` one after the other; None is left where a row is deleted.

    Args:
        projection: Whose methods the handlers are.
        steps: In the order of the log.
        rows: The rows that exist among those concerned.
        new_row: Makes the row of a key that has none, by table.
    """
    for step in steps:
        of_table = rows[step.table]
        row = of_table.get(step.key)
        if row is None:
            row = of_table[step.key] = new_row[step.table](step.key)
        if step.handler.apply(projection, row, step.event, step.meta) is DELETE:
            of_table[step.key] = None


def _no_keys(_event: object, _meta: RecordedEvent) -> tuple[Hashable, ...]:
    return ()
