"""Forget what depends on rows when sessions write them, by tags."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Column, Table, event, inspect, select, tuple_
from sqlalchemy.orm import (
    InstanceState,
    Mapper,
    ORMExecuteState,
    Session,
    UOWTransaction,
    sessionmaker,
)
from sqlalchemy.orm.exc import UnmappedColumnError

from datapatterns.cache_aside.tags import (
    is_tagged,
    names_values,
    of_unknown_rows,
    row_tag,
    table_of,
    table_tag,
    value_tag,
)

ForgetTags = Callable[[Session, Iterable[str]], object]

_ROWS_AT_ONCE = 500


def watch_tags(
    sessions: type[Session] | sessionmaker[Any], models: Sequence[type], forget: ForgetTags
) -> None:
    """Call ``forget(session, tags)`` for the rows of ``models`` that are written.

    Args:
        sessions: Which sessions to watch.
        models: Mapped classes; their subclasses count.
        forget: What records the tags in the session's transaction.
    """
    mappers: list[Mapper[Any]] = [inspect(model) for model in models]
    before: WeakKeyDictionary[Session, set[str]] = WeakKeyDictionary()

    def watched(rows: Iterable[object]) -> list[object]:
        return [row for row in rows if isinstance(row, tuple(models))]

    def before_flush(session: Session, *_: object) -> None:
        changed = (row for row in session.dirty if _has_changed(session, row))
        rows = watched((*changed, *session.deleted))
        before[session] = set(_of_stored_values(session, rows))

    def after_flush(session: Session, _: UOWTransaction) -> None:
        changed = (row for row in session.dirty if _has_changed(session, row))
        touched = watched((*session.new, *changed, *session.deleted))
        tags = before.pop(session, set()).union(*map(_of_row, touched))
        if tags:
            forget(session, tags)

    def do_orm_execute(state: ORMExecuteState) -> None:
        if not (state.is_insert or state.is_update or state.is_delete):
            return
        written = getattr(getattr(state.statement, "table", None), "fullname", None)
        # Looked up each time: subclasses may be mapped later than a watch begins.
        families = (each for mapper in mappers for each in mapper.self_and_descendants)
        # By name: the ORM has a table of its own for each statement.
        tables = {table.fullname: table for each in families for table in _tables_of(each)}
        if written in tables:
            forget(state.session, of_unknown_rows(table_tag(tables[written])))

    event.listen(sessions, "before_flush", before_flush)
    event.listen(sessions, "after_flush", after_flush)
    event.listen(sessions, "do_orm_execute", do_orm_execute)


def _has_changed(session: Session, row: object) -> bool:
    """Return whether a row is written, which ``session.dirty`` does not tell for certain.

    What the server has computed in the flush is expired by now, and no change any more.
    """
    state: InstanceState[Any] = inspect(row, raiseerr=True)
    return session.is_modified(row) or bool(state.expired_attributes)


def _of_row(row: object) -> Iterator[str]:
    """Return the tags of a row as it is written now, and under the key that it had."""
    state: InstanceState[Any] = inspect(row, raiseerr=True)
    mapper = state.mapper
    keys = {tuple(mapper.primary_key_from_instance(row)), tuple(state.identity or ())} - {()}
    for table in _tables_of(mapper):
        yield table_tag(table)
        # A row whose key has no certain name is nobody's tag.
        for key in keys if all(map(names_values, table.primary_key)) else ():
            yield row_tag(table, key)
        for column in filter(is_tagged, table.columns):
            value = _value_in(state, column)
            if value is _UNKNOWN:
                yield from of_unknown_rows(table_tag(table))
            else:
                yield value_tag(column, value)
    for relationship in mapper.relationships:
        linked = relationship.secondary
        changes = state.attrs[relationship.key].load_history if linked is not None else None
        if isinstance(linked, Table) and changes is not None and changes().has_changes():
            yield from of_unknown_rows(table_tag(linked))


def _value_in(state: InstanceState[Any], column: Column[Any]) -> object:
    """Return what the object holds; unknown if the server computes it, or it is not mapped."""
    try:
        attribute = state.mapper.get_property_by_column(column).key
    except UnmappedColumnError:
        return _UNKNOWN
    value = state.dict.get(attribute, _UNKNOWN)
    return _UNKNOWN if isinstance(value, ClauseElement) else value


def _of_stored_values(session: Session, rows: Iterable[object]) -> Iterator[str]:
    """Return the tags of values that rows have until they are written.

    They are read from the rows, which are locked by it: what an object was loaded with may have
    been changed by others since, and what has expired is not known at all.
    """
    keys: dict[Table, list[tuple[Any, ...]]] = {}
    for row in rows:
        state: InstanceState[Any] = inspect(row, raiseerr=True)
        for table in _tables_of(state.mapper):
            if state.identity is not None and any(map(is_tagged, table.columns)):
                keys.setdefault(table, []).append(tuple(state.identity))
    with session.no_autoflush:
        for table, wanted in keys.items():
            tagged: list[Column[Any]] = [*filter(is_tagged, table.columns)]
            for start in range(0, len(wanted), _ROWS_AT_ONCE):
                some = sorted(wanted[start : start + _ROWS_AT_ONCE])
                found = select(*tagged).where(tuple_(*table.primary_key).in_(some))
                # In the order of the key, so that two flushes do not wait for each other.
                locked = found.order_by(*table.primary_key).with_for_update(key_share=True)
                for values in session.connection().execute(locked):
                    for column, value in zip(tagged, values, strict=True):
                        yield value_tag(column, value)


def _tables_of(mapper: Mapper[Any]) -> list[Table]:
    return [table_of(table) for table in mapper.tables]


_UNKNOWN = object()
