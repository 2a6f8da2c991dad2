"""Forget entries when sessions write the rows they were made from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Uuid, event, inspect
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, UOWTransaction, sessionmaker

from datapatterns.cache_aside.keys import Key
from datapatterns.cache_aside.tags import names_values
from datapatterns.errors import CacheKeyError, UnknownRowsError

_OPTION = "cache_keys"


def watch_models(
    sessions: type[Session] | sessionmaker[Any],
    models: Sequence[type],
    invalidate_in: Callable[..., object],
) -> None:
    """Call ``invalidate_in(session, *keys)`` for the rows of ``models`` that are written.

    Args:
        sessions: Which sessions to watch.
        models: Mapped classes; their subclasses count.
        invalidate_in: What records the keys in the session's transaction.

    Raises:
        CacheKeyError: Readers may call a row otherwise than its writers.
    """
    mappers: list[Mapper[Any]] = [inspect(model) for model in models]
    for mapper in mappers:
        _refuse_uncertain_key(mapper)

    def after_flush(session: Session, flush: UOWTransaction) -> None:
        touched = (row for row, _ in flushed_rows(session, flush))
        keys = {key for row in touched if isinstance(row, tuple(models)) for key in _keys_of(row)}
        if keys:
            invalidate_in(session, *keys)

    def do_orm_execute(state: ORMExecuteState) -> None:
        if not (state.is_insert or state.is_update or state.is_delete):
            return
        table = getattr(state.statement, "table", None)
        if table is None or not _is_of(mappers, table):
            return
        if _OPTION not in state.execution_options:
            raise UnknownRowsError(table.name)
        invalidate_in(state.session, *_listed(state.execution_options[_OPTION]))

    event.listen(sessions, "after_flush", after_flush)
    event.listen(sessions, "do_orm_execute", do_orm_execute)


def flushed_rows(session: Session, flush: UOWTransaction) -> Iterator[tuple[object, bool]]:
    """Return the objects whose rows a flush may have written, each with whether it deleted it.

    Session lists do not have all of them: what a relationship has orphaned or moved is known to
    the flush alone.
    """
    deleted = session.deleted  # which is made anew each time
    known: dict[int, tuple[object, bool]] = {
        id(row): (row, row in deleted) for row in (*session.new, *session.dirty, *deleted)
    }
    for state, (is_deleted, is_only_listed) in flush.states.items():
        row = state.obj()
        if row is not None and not is_only_listed:
            known[id(row)] = (row, is_deleted)
    yield from known.values()


def _refuse_uncertain_key(mapper: Mapper[Any]) -> None:
    for column in mapper.primary_key:
        if not isinstance(column, Column):
            continue
        is_text_of_uuid = isinstance(column.type, Uuid) and not column.type.as_uuid
        if is_text_of_uuid or not names_values(column):
            raise CacheKeyError(
                str(column),
                "equal values of this primary key may be written in several ways; use"
                " watch_tags(Session, Model) and tags",
            )


def _is_of(mappers: Iterable[Mapper[Any]], table: object) -> bool:
    # Looked up each time: subclasses may be mapped later than a watch begins.
    name = getattr(table, "name", None)
    families = (each for mapper in mappers for each in mapper.self_and_descendants)
    return any(name == getattr(own, "name", "") for each in families for own in each.tables)


def _listed(keys: str | bytes | Iterable[Key]) -> Iterable[Key]:
    # A key alone, whose letters or parts are no keys.
    return [keys] if isinstance(keys, str | bytes) else keys


def _keys_of(row: object) -> set[Key]:
    # Both, for a primary key may change; before the flush ends, the state has the old one.
    state = inspect(row, raiseerr=True)
    identities = {tuple(state.mapper.primary_key_from_instance(row)), state.identity} - {None}
    return {identity[0] if len(identity) == 1 else identity for identity in identities}
