"""What a page of events does to rows; without a database."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from datapatterns.cqrs.definition import DELETE, AnyProjection, Handler, OneKey, Projection
from datapatterns.cqrs.messages.drafts import Emitted, emitting
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.states.decider import refuse_unfinished

Rows = dict[Hashable, Any]
"""Rows by primary key; None where there is none, or none any more."""

RowsByTable = dict[type, Rows]
"""The rows of each of a projection's tables, by its mapped class."""


Keys: TypeAlias = Callable[[Any, RecordedEvent], Iterable[Hashable]]
Apply: TypeAlias = Callable[[Any, Any, Any, RecordedEvent], object]


class Step(msgspec.Struct, gc=False):
    """One event that concerns one row of one table.

    A struct that the garbage collector passes by, as one is made for each event.
    """

    table: type
    key: Hashable
    apply: Apply
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
    handlers = _plan(projection)
    owns_all, owns = segment == WHOLE, segment.owns
    steps: list[Step] = []
    add = steps.append
    for event, meta in decoded:
        for table, keys_of, apply in handlers.get(type(event), ()):
            if type(keys_of) is OneKey:  # the rule, and half as much work
                key = keys_of.key(event, meta)
                if key is not None and (owns_all or owns(key)):
                    add(Step(table, key, apply, event, meta))
                continue
            for key in dict.fromkeys(keys_of(event, meta)):
                if owns_all or owns(key):
                    add(Step(table, key, apply, event, meta))
    return steps


def _plan(projection: Projection) -> Mapping[type, Sequence[tuple[type, Keys, Apply]]]:
    return {
        event_class: [
            (projection.table_of(handler), handler.keys, handler.apply)
            for handler in handlers
            if handler.keys is not None
        ]
        for event_class, handlers in handlers_by_class(projection).items()
    }


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
) -> list[Emitted]:
    """Let ``steps`` change ``rows`` one after the other; None is left where a row is deleted.

    Returns what the handlers have emitted, in their order.

    Args:
        projection: Whose methods the handlers are.
        steps: In the order of the log.
        rows: The rows that exist among those concerned.
        new_row: Makes the row of a key that has none, by table.
    """
    if not projection.messages:
        _fold(projection, steps, rows, new_row)
        return []
    emitted = list[Emitted]()
    for step in steps:
        with emitting(projection) as messages:
            _fold(projection, [step], rows, new_row)
        place = (step.meta.position, step.table, step.key)
        emitted += [Emitted(*place, message) for message in messages]
    return emitted


def _fold(
    projection: AnyProjection,
    steps: Sequence[Step],
    rows: RowsByTable,
    new_row: Mapping[type, Callable[[Hashable], Any]],
) -> None:
    for step in steps:
        of_table, key = rows[step.table], step.key
        row = of_table.get(key)
        if row is None:
            row = of_table[key] = new_row[step.table](key)
        outcome = step.apply(projection, row, step.event, step.meta)
        if outcome is DELETE:
            of_table[key] = None
        elif outcome is not None:
            refuse_unfinished(outcome, "a handler")
