"""What a flush has done to objects that refer to others, or are referred to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Select, Table, and_, select
from sqlalchemy.orm import InstanceState
from sqlalchemy.sql.elements import ClauseElement

from datapatterns.errors import RowMissingError
from datapatterns.sharding.references.changes import Changes
from datapatterns.sharding.references.declared import PlacedReference, References
from datapatterns.sharding.references.definition import Values

_UNKNOWN = object()


class FlushedObjects:
    """Objects that the running flush writes.

    Args:
        references: Those that are checked.
    """

    def __init__(self, references: References) -> None:
        self._references = references
        self._states: dict[InstanceState[Any], _Noted] = {}
        self._before: dict[tuple[PlacedReference, InstanceState[Any]], Values] = {}

    def __bool__(self) -> bool:
        return bool(self._states)

    def writes(self, state: InstanceState[Any], conn: Connection) -> None:
        """Take note of an object that is about to be written.

        Raises:
            RowMissingError: It is gone.
        """
        tables = _tables_of(state)
        if not any(map(self._references.of_child, tables)) and not any(
            map(self._references.of_parent, tables)
        ):
            return
        self._states[state] = _Noted(state, conn, frozenset(state.dict))
        for reference in self._to(tables):
            if state.key is not None and not self._is_in_identity(reference, state):
                # What was loaded may be old, and other rows may refer to what it is now.
                self._before[reference, state] = _locked(conn, reference, state)

    def changes(self, deleted: Callable[[InstanceState[Any]], bool]) -> Changes:
        """Return what has been written, when all of it has been.

        Args:
            deleted: Whether an object's row was deleted.
        """
        found = Changes()
        for state, noted in self._states.items():
            tables = _tables_of(state)
            is_gone = deleted(state)
            if not is_gone:
                for reference in self._from(tables):
                    found.refer(reference, _referred(reference, noted))
            if state.key is not None:
                for reference in self._to(tables):
                    found.go(reference, self._given_up(reference, noted, is_gone=is_gone))
        return found

    def end(self) -> None:
        """Forget the flush."""
        self._states.clear()
        self._before.clear()

    def _from(self, tables: Iterable[Table]) -> list[PlacedReference]:
        return [each for table in tables for each in self._references.of_child(table)]

    def _to(self, tables: Iterable[Table]) -> list[PlacedReference]:
        return [each for table in tables for each in self._references.of_parent(table)]

    @staticmethod
    def _is_in_identity(reference: PlacedReference, state: InstanceState[Any]) -> bool:
        return all(_place(state, column) is not None for column in reference.declared.parent)

    def _given_up(
        self, reference: PlacedReference, noted: "_Noted", *, is_gone: bool
    ) -> list[Values]:
        columns, state = reference.declared.parent, noted.state
        before = self._before.get((reference, state))
        if before is None:
            before = tuple(_identity(state, column) for column in columns)
        if is_gone:
            return [before]
        if not any(map(noted.has_set, columns)):
            return []
        after = tuple(
            noted.written(column) if noted.has_set(column) else value
            for column, value in zip(columns, before, strict=True)
        )
        if any(value is _UNKNOWN for value in after):
            after = next(iter(noted.stored(columns)), ())
        return [] if after == before else [before]


@dataclass(frozen=True, slots=True)
class _Noted:
    """An object that is written: on which connection, and which attributes it had before."""

    state: InstanceState[Any]
    conn: Connection
    present: frozenset[str]

    def has_set(self, column: Column[Any]) -> bool:
        """Return whether the flush has written a column."""
        if not self.state.mapper.columns.contains_column(column):
            return False
        attribute = _attribute(self.state, column)
        # What the server has computed is not known any more.
        is_expired = attribute in self.present and attribute not in self.state.dict
        return is_expired or self.state.attrs[attribute].history.has_changes()

    def written(self, column: Column[Any]) -> Any:  # noqa: ANN401 -- a value of the row
        """Return what the row has in a column now, as far as that follows from the object."""
        state = self.state
        if not state.mapper.columns.contains_column(column):
            return _UNKNOWN
        if not self.has_set(column) and state.key is not None:
            # What was loaded may be old; but an identity is not.
            return _UNKNOWN if _place(state, column) is None else _identity(state, column)
        value = state.dict.get(_attribute(state, column), _UNKNOWN)
        return _UNKNOWN if isinstance(value, ClauseElement) else value

    def stored(self, columns: Sequence[Column[Any]]) -> list[Values]:
        """Return what the row has now, as the server says."""
        primary = {}
        for column in _table(columns).primary_key.columns:
            is_stored = self.state.key is not None and not self.has_set(column)
            attribute = _attribute(self.state, column)
            primary[column] = (
                _identity(self.state, column) if is_stored else self.state.dict[attribute]
            )
        return _rows(self.conn, select(*columns), primary)


def _referred(reference: PlacedReference, noted: _Noted) -> list[Values]:
    columns = reference.declared.child
    if noted.state.key is not None and not any(map(noted.has_set, columns)):
        return []
    values = tuple(map(noted.written, columns))
    return noted.stored(columns) if any(value is _UNKNOWN for value in values) else [values]


def _tables_of(state: InstanceState[Any]) -> list[Table]:
    return [table for table in state.mapper.tables if isinstance(table, Table)]


def _attribute(state: InstanceState[Any], column: Column[Any]) -> str:
    return state.mapper.get_property_by_column(column).key


def _place(state: InstanceState[Any], column: Column[Any]) -> int | None:
    """Return where in the object's identity a column stands, under any of its names."""
    if not state.mapper.columns.contains_column(column):
        return None
    property_ = state.mapper.get_property_by_column(column)
    for place, primary in enumerate(state.mapper.primary_key):
        if state.mapper.get_property_by_column(primary) is property_:
            return place
    return None


def _identity(state: InstanceState[Any], column: Column[Any]) -> Any:  # noqa: ANN401 -- a value of the row
    place = _place(state, column)
    assert place is not None
    assert state.key is not None
    return state.key[1][place]


def _locked(conn: Connection, reference: PlacedReference, state: InstanceState[Any]) -> Values:
    columns = reference.declared.parent
    table = _table(columns)
    primary = {column: _identity(state, column) for column in table.primary_key.columns}
    rows = _rows(conn, select(*columns).with_for_update(key_share=True), primary)
    if not rows:
        raise RowMissingError(table.name)
    return rows[0]


def _rows(
    conn: Connection, statement: Select[Any], primary: Mapping[Column[Any], Any]
) -> list[Values]:
    found = conn.execute(statement.where(and_(*(c == value for c, value in primary.items()))))
    return [tuple(row) for row in found]


def _table(columns: Sequence[Column[Any]]) -> Table:
    table = columns[0].table
    assert isinstance(table, Table)
    return table
