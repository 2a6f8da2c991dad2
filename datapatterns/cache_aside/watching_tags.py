"""Forget what depends on rows when sessions write them, by tags."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
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
from datapatterns.cache_aside.watching import flushed_rows

ForgetTags = Callable[[Session, Iterable[str]], object]

_ROWS_AT_ONCE = 500


class _Before(NamedTuple):
    """What is known before a flush.

    Attributes:
        tags: Those of the values that rows have until then.
        read: The rows that these are of, by identity.
        rows: The same, so that no other takes the identity of one.
    """

    tags: set[str]
    read: set[int]
    rows: list[object]


def watch_tags(
    sessions: type[Session] | sessionmaker[Any], models: Sequence[type], forget: ForgetTags
) -> None:
    """Call ``forget(session, tags)`` for the rows of ``models`` that are written.

    Args:
        sessions: Which sessions to watch.
        models: Mapped classes; their subclasses count, and whatever else is mapped to their tables.
        forget: What records the tags in the session's transaction.
    """
    watch = _Watch([inspect(model) for model in models], forget)
    event.listen(sessions, "before_flush", watch.before_flush)
    event.listen(sessions, "after_flush", watch.after_flush)
    event.listen(sessions, "do_orm_execute", watch.do_orm_execute)


class _Watch:
    """What is done for sessions that are watched."""

    def __init__(self, mappers: Sequence[Mapper[Any]], forget: ForgetTags) -> None:
        self._mappers = mappers
        self._forget = forget
        self._before: WeakKeyDictionary[Session, _Before] = WeakKeyDictionary()

    def before_flush(self, session: Session, *_: object) -> None:
        changed = (row for row in session.dirty if _has_changed(session, row))
        tables = self._tables()
        rows = [row for row in (*changed, *session.deleted) if _is_in(tables, row)]
        tags = set(_of_stored_values(session, rows))
        self._before[session] = _Before(tags, {*map(id, rows)}, rows)

    def after_flush(self, session: Session, flush: UOWTransaction) -> None:
        tables = self._tables()
        known = self._before.pop(session, _Before(set(), set(), []))
        tags, new = known.tags, session.new  # which is made anew each time
        for row, is_deleted in flushed_rows(session, flush):
            is_new = row in new
            if not (is_new or is_deleted or _has_changed(session, row)):
                continue
            if _is_in(tables, row):
                tags.update(_of_row(row))
                if not is_new and id(row) not in known.read:
                    tags.update(_of_unread_values(row))
            tags.update(_of_links(row, tables, is_deleted=is_deleted))
        if tags:
            self._forget(session, tags)

    def do_orm_execute(self, state: ORMExecuteState) -> None:
        if not (state.is_insert or state.is_update or state.is_delete):
            return
        written = getattr(getattr(state.statement, "table", None), "fullname", None)
        table = self._tables().get(str(written))
        if table is not None:
            self._forget(state.session, of_unknown_rows(table_tag(table)))

    def _tables(self) -> dict[str, Table]:
        # Looked up each time: subclasses may be mapped later than a watch begins.
        families = (each for mapper in self._mappers for each in mapper.self_and_descendants)
        # By name: the ORM has a table of its own for each statement.
        return {table.fullname: table for each in families for table in _tables_of(each)}


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


def _of_unread_values(row: object) -> Iterator[str]:
    """Return the tags of values that a row had, which was not known to be written beforehand.

    A relationship of another object has moved or orphaned it in the flush.
    """
    state: InstanceState[Any] = inspect(row, raiseerr=True)
    for table in _tables_of(state.mapper):
        if any(map(is_tagged, table.columns)):
            yield from of_unknown_rows(table_tag(table))


def _of_links(row: object, watched: Container[str], *, is_deleted: bool) -> Iterator[str]:
    """Return the tags of rows that link this one to others and have no object of their own."""
    state: InstanceState[Any] = inspect(row, raiseerr=True)
    is_watched = any(table.fullname in watched for table in _tables_of(state.mapper))
    for relationship in state.mapper.relationships:
        linked = relationship.secondary
        if not isinstance(linked, Table) or relationship.viewonly:
            continue
        if not is_watched and linked.fullname not in watched:
            continue
        # With a deleted row go those that link it, loaded or not.
        if is_deleted or state.attrs[relationship.key].load_history().has_changes():
            yield from of_unknown_rows(table_tag(linked))


def _is_in(tables: Container[str], row: object) -> bool:
    """Return whether a row is in one of ``tables``, of whichever class it is."""
    state: InstanceState[Any] = inspect(row, raiseerr=True)
    return any(table.fullname in tables for table in _tables_of(state.mapper))


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
