"""Find the shard key of a mapped object."""

from typing import Any

from sqlalchemy import ClauseElement, Column, inspect
from sqlalchemy.orm import InstanceState, Mapper

from datapatterns.errors import ShardKeyChangedError, UnroutableStatementError
from datapatterns.sharding.broadcasting.guarding import only_by_sessions
from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.routing.write_keys import refuse_subqueries
from datapatterns.sharding.strategies.strategy import Key


def declared_key(mapper: Mapper[Any], placements: Placements) -> ShardKey:
    """Return what was declared about a mapped class.

    Raises:
        BroadcastWriteError: Every shard holds it; only sessions over all of them may write it.
        UnroutableStatementError: Nothing was.
    """
    table = mapper.base_mapper.local_table
    shard_key = placements.shard_key(table)
    if placements.is_broadcast(table):
        raise only_by_sessions(str(table))
    if shard_key is None:
        raise UnroutableStatementError(
            f"nothing was declared about class {mapper.class_.__name__}",
            "give it a __shard__, or write it on one shard with ShardCluster.on()",
        )
    return shard_key


def key_of(instance: object, shard_key: ShardKey) -> Key | None:
    """Return the shard key of a mapped object; None while a new one has none yet.

    Raises:
        ShardKeyChangedError: It is not the one that the stored row has.
        ShardKeyError: It is of a wrong type, or too long.
        UnroutableStatementError: An attribute is to be set to a subquery.
    """
    state: InstanceState[Any] = inspect(instance)
    names = shard_key.columns
    value, column = _stored_part(state, names[0])
    second, its_column = _stored_part(state, names[1]) if len(names) > 1 else (None, None)
    for written in state.dict.values():
        if isinstance(written, ClauseElement):
            refuse_subqueries(written)
    if value is None:
        return None
    if its_column is None:
        return shard_key.group.stored_key(value, column)
    if second is None:
        return None
    return shard_key.group.stored_key((value, second), column, its_column)


def _stored_part(state: InstanceState[Any], name: str) -> tuple[Any, Column[Any]]:
    """Return what an object has in a column of its shard key, and the column."""
    mapper = state.mapper
    column = mapper.base_mapper.local_table.c[name]
    attribute = mapper.get_property_by_column(column).key
    value = state.dict.get(attribute)
    if state.key is not None:
        # The primary key holds the shard key, so an object's identity remembers the stored one.
        place = [primary.name for primary in mapper.primary_key].index(column.name)
        stored = state.key[1][place]
        if attribute in state.dict and value != stored:
            raise ShardKeyChangedError(table=column.table.name, column=column.name)
        value = stored
    assert isinstance(column, Column)  # the primary key's
    return value, column
