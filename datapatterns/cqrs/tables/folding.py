"""What a page of events does to rows; without a database."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datapatterns.cqrs.definition import DELETE, AnyProjection, Handler
from datapatterns.event_sourcing.recorded import RecordedEvent

Rows = dict[Hashable, Any]
"""Rows by primary key; None where there is none, or none any more."""


@dataclass(frozen=True, slots=True)
class Step:
    """One event that concerns one row."""

    handler: Handler
    key: Hashable
    event: object
    meta: RecordedEvent


def plan_steps(
    projection: AnyProjection, decoded: Iterable[tuple[object, RecordedEvent]]
) -> list[Step]:
    """Return which handler each event meets and for which row, in the order of the log."""
    handlers = handlers_by_class(projection)
    return [
        Step(handler, key, event, meta)
        for event, meta in decoded
        for handler in handlers.get(type(event), ())
        for key in dict.fromkeys((handler.keys or _no_keys)(event, meta))
    ]


def handlers_by_class(projection: AnyProjection) -> dict[type, list[Handler]]:
    """Return the handlers that an event's class meets, in the order they were declared."""
    handlers: dict[type, list[Handler]] = {}
    for handler in projection.handlers:
        handlers.setdefault(handler.event_class, []).append(handler)
    return handlers


def fold_steps(
    projection: AnyProjection,
    steps: Sequence[Step],
    rows: Rows,
    *,
    new_row: Callable[[Hashable], Any],
) -> None:
    """Let ``steps`` change ``rows`` one after the other; None is left where a row is deleted.

    Args:
        projection: Whose methods the handlers are.
        steps: In the order of the log.
        rows: The rows that exist among those concerned.
        new_row: Makes the row of a key that has none.
    """
    for step in steps:
        row = rows.get(step.key)
        if row is None:
            row = rows[step.key] = new_row(step.key)
        if step.handler.apply(projection, row, step.event, step.meta) is DELETE:
            rows[step.key] = None


def _no_keys(_event: object, _meta: RecordedEvent) -> tuple[Hashable, ...]:
    return ()
