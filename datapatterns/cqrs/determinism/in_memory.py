"""Fold decoded events in memory, from a state that is given: here, or in another process."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec.structs import astuple

from datapatterns.cqrs.definition import Projection, RedisProjection
from datapatterns.cqrs.determinism.watching import Notice, WatchedChanges, watched_instance
from datapatterns.cqrs.in_redis.redis_changes import Outcome, RedisChanges
from datapatterns.cqrs.in_redis.redis_folding import fold_decoded
from datapatterns.cqrs.in_redis.redis_keys import Place
from datapatterns.cqrs.tables.folding import RowsByTable, fold_steps, plan_steps
from datapatterns.cqrs.tables.leaving_out import LeftOut
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.event_sourcing.recorded import RecordedEvent

Decoded: TypeAlias = Sequence[tuple[object, RecordedEvent]]
"""Events, each with its record."""

State: TypeAlias = dict[tuple[str, Hashable], tuple[Any, ...] | None]
"""What rows hold by table and key, or places by an empty text and themselves; None for nothing."""


def fold_rows(
    projection: type[Projection], decoded: Decoded, before: State, left_out: LeftOut
) -> State:
    """Return what rows hold afterwards, as the methods leave them."""
    instance = projection()
    models = read_models_of(projection)
    rows: RowsByTable = {table: {} for table in models}
    tables = {model.table.name: table for table, model in models.items()}
    for (name, key), values in before.items():
        if values is not None:
            table = tables[name]
            rows[table][key] = models[table].row_class(*values)
    steps = plan_steps(instance, decoded)
    if left_out:
        steps = [step for step in steps if left_out.takes(step)]
    new_row = {table: model.new_row for table, model in models.items()}
    fold_steps(instance, steps, rows, new_row=new_row)
    return state_of(projection, rows)


def state_of(projection: type[Projection], rows: RowsByTable) -> State:
    """Return what ``rows`` hold."""
    models = read_models_of(projection)
    return {
        (models[table].table.name, key): None if row is None else astuple(row)
        for table, of_table in rows.items()
        for key, row in of_table.items()
    }


def fold_places(
    projection: type[RedisProjection],
    decoded: Decoded,
    stored: Callable[[Iterable[Place]], Mapping[Place, str]],
    *,
    notice: Notice | None = None,
) -> Outcome:
    """Return what the methods make of a read model in Redis, of which ``stored`` tells places.

    With ``notice``, it is told what they ask of the clock and of chance.
    """
    instance = projection() if notice is None else watched_instance(projection, notice)
    changes = RedisChanges() if notice is None else WatchedChanges(notice)
    fold_decoded(instance, decoded, changes)
    return changes.resolved(stored(changes.additions()))


def difference_of(first: State, second: State) -> tuple[str, Hashable] | None:
    """Return the first table and key, in the order they were met, of which the two do not agree."""
    for place in dict.fromkeys([*first, *second]):
        if place not in first or place not in second or not _same(first[place], second[place]):
            return place
    return None


def _same(first: tuple[Any, ...] | None, second: tuple[Any, ...] | None) -> bool:
    # NaN is not equal to itself, but looks like itself.
    return first == second or repr(first) == repr(second)
