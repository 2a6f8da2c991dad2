"""What an INSERT, UPDATE or DELETE does to references, as far as it says itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from sqlalchemy import BindParameter, Column, Delete, Insert, Null, Table, Update
from sqlalchemy.dialects.postgresql.dml import OnConflictDoUpdate
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.elements import ClauseElement

from datapatterns.errors import ReferenceWriteError
from datapatterns.sharding.key_types import is_plain_key_type
from datapatterns.sharding.references.declared import PlacedReference, References
from datapatterns.sharding.references.definition import Values
from datapatterns.sharding.routing.key_conditions import Parameters
from datapatterns.sharding.routing.write_keys import inserted_rows, names_of, written_by_name

Write: TypeAlias = Insert | Update | Delete

_COMPUTED: Final = object()
"""Stands for what only the server knows."""
_UNTOUCHED: Final = object()
"""Stands for what stays as it is."""


@dataclass(slots=True)
class Effect:
    """What a statement does to references.

    Attributes:
        refers: What rows refer to afterwards, if it changes any.
        rereads: The references of which that has to be read, from the rows that it has changed.
        gives_up: The references to keys that the rows which it changes may have no more.
    """

    refers: dict[PlacedReference, set[Values]] = field(default_factory=dict)
    rereads: list[PlacedReference] = field(default_factory=list)
    gives_up: list[PlacedReference] = field(default_factory=list)

    @property
    def chooses(self) -> bool:
        """Return whether it has to be known which rows it changes."""
        return bool(self.rereads or self.gives_up)

    def __bool__(self) -> bool:
        return bool(self.refers or self.chooses)


def effect_of(
    statement: Write,
    parameters: Sequence[Parameters],
    mapper: Mapper[Any] | None,
    references: References,
    *,
    by_primary_key: bool,
) -> Effect:
    """Return what ``statement`` does to references.

    Args:
        statement: What is to be executed.
        parameters: With these parameters.
        mapper: Of the class that the statement is about.
        references: Those that are checked.
        by_primary_key: Whether the parameters of an UPDATE are rows with primary keys.

    Raises:
        ReferenceWriteError: That cannot be told.
    """
    found = Effect()
    for table in _tables(statement, mapper):
        if isinstance(statement, Insert):
            for reference in references.of_child(table):
                _insert(found, reference, statement, parameters, mapper)
            for reference in references.of_parent(table):
                _refuse_replaced_key(reference, statement, mapper)
            continue
        if isinstance(statement, Delete):
            found.gives_up += references.of_parent(table)
            continue
        rows = [*_assigned(statement, parameters)]
        for reference in references.of_child(table):
            _update(found, reference, rows, mapper, by_primary_key=by_primary_key)
        for reference in references.of_parent(table):
            _update_parent(found, reference, rows, mapper, by_primary_key=by_primary_key)
    return found


def _tables(statement: Write, mapper: Mapper[Any] | None) -> list[Any]:
    if mapper is not None and "parententity" in statement.table._annotations:  # noqa: SLF001 -- as SQLAlchemy asks
        return [table for table in mapper.tables if isinstance(table, Table)]
    return [statement.table]


# INSERT --------------------------------------------------------------------------------------


def _insert(
    into: Effect,
    reference: PlacedReference,
    statement: Insert,
    parameters: Sequence[Parameters],
    mapper: Mapper[Any] | None,
) -> None:
    rows = list(inserted_rows(statement, parameters))
    replaced = _replaced(reference, statement, reference.declared.child, mapper)
    found = {
        tuple(
            _inserted_value(reference, column, row, passed, mapper)
            for column in reference.declared.child
        )
        for row, passed in rows
    }
    for values in (*found, *replaced):
        if None not in values:
            into.refers.setdefault(reference, set()).add(values)


def _inserted_value(
    reference: PlacedReference,
    column: Column[Any],
    row: Mapping[str, Any],
    passed: Parameters,
    mapper: Mapper[Any] | None,
) -> Any:  # noqa: ANN401 -- a value of the row
    value = _value(column, row, passed, mapper)
    if value is _UNTOUCHED:
        default: Any = column.default
        if default is not None and default.is_scalar:
            return default.arg
        if default is None and column.server_default is None:
            return None
        value = _COMPUTED
    if value is _COMPUTED:
        raise ReferenceWriteError(
            reference.name, f"{column.name} is computed, and not known before", "pass its value"
        )
    return value


def _replaced(
    reference: PlacedReference,
    statement: Insert,
    columns: Sequence[Column[Any]],
    mapper: Mapper[Any] | None,
) -> list[Values]:
    """Return what rows refer to that ON CONFLICT changes, beside what was to be inserted."""
    conflict = statement._post_values_clause  # noqa: SLF001 -- there is no public name
    if not isinstance(conflict, OnConflictDoUpdate):
        return []
    row = written_by_name(conflict.update_values_to_set)
    values = [
        _UNTOUCHED if _is_excluded(column, row, mapper) else _value(column, row, {}, mapper)
        for column in columns
    ]
    touched = [column for column in columns if names_of(column, mapper) & row.keys()]
    if not touched:
        return []
    if all(value is not _UNTOUCHED and value is not _COMPUTED for value in values):
        return [tuple(values)]
    # A row in the way has the same shard key, as all unique constraints have it.
    keys = {*reference.child_key.columns}
    if all(_is_excluded(c, row, mapper) or c.name in keys for c in columns):
        return []
    raise ReferenceWriteError(
        reference.name,
        "its ON CONFLICT sets columns to what is not known before",
        "set all of them, to values or to those of excluded",
    )


def _is_excluded(column: Column[Any], row: Mapping[str, Any], mapper: Mapper[Any] | None) -> bool:
    """Return whether a column is set to what was to be inserted."""
    given = [row[name] for name in names_of(column, mapper) if name in row]
    source = getattr(given[0], "table", None) if given else None
    return getattr(source, "name", None) == "excluded" and given[0].key == column.key


def _refuse_replaced_key(
    reference: PlacedReference, statement: Insert, mapper: Mapper[Any] | None
) -> None:
    conflict = statement._post_values_clause  # noqa: SLF001 -- there is no public name
    if not isinstance(conflict, OnConflictDoUpdate):
        return
    row = written_by_name(conflict.update_values_to_set)
    for column in reference.declared.parent:
        if names_of(column, mapper) & row.keys():
            raise ReferenceWriteError(
                reference.name,
                f"its ON CONFLICT changes {column.name}, which other rows refer to",
                "leave it out, or change the row with an UPDATE",
            )


# UPDATE --------------------------------------------------------------------------------------


def _assigned(
    statement: Update, parameters: Sequence[Parameters]
) -> Iterable[tuple[Mapping[str, Any], Parameters]]:
    constant = written_by_name(statement._values or {})  # noqa: SLF001 -- there is no public name
    for each in parameters or ({},):
        yield {**constant, **each}, each


def _update(
    into: Effect,
    reference: PlacedReference,
    rows: Sequence[tuple[Mapping[str, Any], Parameters]],
    mapper: Mapper[Any] | None,
    *,
    by_primary_key: bool,
) -> None:
    columns = reference.declared.child
    identity = [*reference.declared.child_table.primary_key.columns] if by_primary_key else []
    changed = [column for column in columns if column not in set(identity)]
    for row, passed in rows:
        if not any(names_of(column, mapper) & row.keys() for column in changed):
            continue
        values = tuple(_value(column, row, passed, mapper) for column in columns)
        if any(value is None for value in values):
            continue  # whatever the others are, it refers to nothing
        if any(value is _UNTOUCHED or value is _COMPUTED for value in values):
            into.refers.pop(reference, None)
            into.rereads.append(reference)
            return
        into.refers.setdefault(reference, set()).add(values)


def _update_parent(
    into: Effect,
    reference: PlacedReference,
    rows: Sequence[tuple[Mapping[str, Any], Parameters]],
    mapper: Mapper[Any] | None,
    *,
    by_primary_key: bool,
) -> None:
    columns = reference.declared.parent
    identity = [*reference.declared.parent_table.primary_key.columns] if by_primary_key else []
    changed = [column for column in columns if column not in set(identity)]
    if not any(names_of(column, mapper) & row.keys() for column in changed for row, _ in rows):
        return
    if by_primary_key:
        raise ReferenceWriteError(
            reference.name,
            "a list of rows changes columns that other rows refer to",
            "change them as objects, or with an UPDATE that has a WHERE",
        )
    into.gives_up.append(reference)


# Values --------------------------------------------------------------------------------------


def _value(
    column: Column[Any],
    row: Mapping[str, Any],
    passed: Parameters,
    mapper: Mapper[Any] | None,
) -> Any:  # noqa: ANN401 -- a value of the row
    given = [row[name] for name in names_of(column, mapper) if name in row]
    if not given:
        return _UNTOUCHED
    value = given[0]
    if isinstance(value, BindParameter) and (
        type(value.type) is type(column.type) or is_plain_key_type(value.type)
    ):
        # What is passed with the statement prevails over what the parameter was made with.
        return passed.get(value.key, value.effective_value)
    if isinstance(value, Null):
        return None
    return _COMPUTED if isinstance(value, ClauseElement) else value
