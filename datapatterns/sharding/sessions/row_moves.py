"""Objects of a session that get another shard key."""

from collections.abc import Iterable
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.orm import InstanceState, Session

from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.rekeying.row_moving import RowMoving, Texts, as_texts
from datapatterns.sharding.routing.instances import declared_key
from datapatterns.sharding.sessions.reference_writing import ReferenceWriting
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.strategies.strategy import Key

T = TypeVar("T")


def move_object(
    session: Session,
    work: ShardWork,
    referring: ReferenceWriting,
    instance: T,
    new_key: Key,
    *,
    with_children: bool,
) -> T:
    """Move an object's row, and return the object that it is now."""
    state: InstanceState[T] = inspect(instance)
    mapper = state.mapper
    session.flush()
    if state.key is None or state.session is not session:
        raise ValueError("only an object that this session has stored can be moved")
    table = mapper.base_mapper.local_table
    assert isinstance(table, Table)
    names = [column.name for column in mapper.primary_key]
    key = dict(zip(names, state.key[1], strict=True))
    shard_key = declared_key(mapper, work.access.placements)
    old_key = shard_key.value_in(key)
    if old_key == new_key:
        return instance

    def connection_for(shard: str, shard_map: ShardMap, bucket: int) -> Connection:
        work.claim(shard, shard_map, [bucket])
        work.become_writer(shard)
        return work.connection_to(shard)

    work.bind_together()
    own = [each for each in mapper.tables if isinstance(each, Table)]
    moving = RowMoving(
        work.access,
        connection_for,
        with_children=with_children,
        own_tables=own,
        check=referring.check,
    )
    moving.move(table, key, new_key)
    _forget(session, moving.keys.keys(), as_texts(old_key), work)
    parts = new_key if isinstance(new_key, tuple) else (new_key,)
    key.update(zip(shard_key.columns, parts, strict=True))
    identity = tuple(key[name] for name in names)
    return session.get_one(type(instance), identity)


def _forget(session: Session, tables: Iterable[Table], old_key: Texts, work: ShardWork) -> None:
    """Let go of objects whose rows may be elsewhere now; those that are not are read again."""
    moved = {*tables}
    for instance in list(session.identity_map.values()):
        state: Any = inspect(instance)
        if moved.isdisjoint(state.mapper.tables):
            continue
        names = [primary.name for primary in state.mapper.primary_key]
        stored = dict(zip(names, state.key[1], strict=True))
        if as_texts(declared_key(state.mapper, work.access.placements).value_in(stored)) == old_key:
            session.expunge(instance)
