"""Read an index in its order: a part of the key, a range, page by page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, literal, select, tuple_

from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.entries import Covered, IndexEntry, Match
from datapatterns.index_table.lagging import read_lag
from datapatterns.index_table.looking_up import check_limit, joined
from datapatterns.index_table.schema import entry_table
from datapatterns.index_table.states import is_ready, reading, require_ready


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRange:
    """Part of an index, in its order.

    Attributes:
        prefix: Values of the first columns of the key; none means any.
        low: The least value of the next column, if any.
        high: The value of the next column to stop before, if any.
        after: Begin behind this entry, the last one of the page before.
        limit: At most how many entries.
    """

    prefix: Sequence[Any]
    low: Any | None
    high: Any | None
    after: IndexEntry | None
    limit: int


def read_entries(
    conn: Connection, definition: IndexDefinition, wanted: KeyRange
) -> list[IndexEntry]:
    """Return the index rows of a range.

    Without touching the base table, unless the index is kept behind its writers: then what it
    says is looked up, and what is included comes from there.
    """
    if definition.mode == "async":
        base = definition.projection(definition.base)
        columns = select(*(own.label(f"entry_{n}") for n, own in enumerate(base.values())))
        return _read(conn, definition, columns.select_from(joined(definition)), wanted)
    return read_unchecked(conn, definition, wanted)


def read_unchecked(
    conn: Connection, definition: IndexDefinition, wanted: KeyRange
) -> list[IndexEntry]:
    """Return the index rows of a range without touching the base table, right or behind."""
    return _read(conn, definition, select(*entry_table(definition).c), wanted)


def read_covered(conn: Connection, definition: IndexDefinition, wanted: KeyRange) -> Covered:
    """Return the index rows of a range as they are, and how old that is."""
    # Before: in between the index can only have come closer.
    lag = read_lag(conn, definition)
    entries = read_unchecked(conn, definition, wanted)
    return Covered(entries=entries, behind_seconds=lag.behind_seconds)


def _read(
    conn: Connection, definition: IndexDefinition, columns: Select[Any], wanted: KeyRange
) -> list[IndexEntry]:
    statement = _ranged(definition, columns, entry_table(definition), wanted)
    with reading(definition):
        found = conn.execute(statement).all()
    if not found:
        require_ready(conn, definition)
        # It may have become so since the statement.
        found = conn.execute(statement).all()
    return [_entry(definition, row) for row in found]


def read_matches(
    conn: Connection, definition: IndexDefinition, wanted: KeyRange
) -> list[Match[Row[Any]]]:
    """Return the index rows of a range, each with its row of the base table."""
    entries = entry_table(definition)
    # Labels of their own: both sides have columns of the same names.
    labelled = [own.label(f"entry_{ordinal}") for ordinal, own in enumerate(entries.c)]
    both = select(*labelled, *definition.base.columns).select_from(joined(definition))
    statement = _ranged(definition, both, entries, wanted)
    with reading(definition):
        result = conn.execute(statement).freeze()
    if not result().first():
        require_ready(conn, definition)
        # It may have become so since the statement.
        result = conn.execute(statement).freeze()
    found_entries = result().columns(*range(len(labelled))).all()
    own = range(len(labelled), len(labelled) + len(definition.base.columns))
    found_rows = result().columns(*own).all()
    return [
        Match(entry=_entry(definition, entry), row=row)
        for entry, row in zip(found_entries, found_rows, strict=True)
    ]


def _ranged(
    definition: IndexDefinition, statement: Select[Any], entries: FromClause, wanted: KeyRange
) -> Select[Any]:
    check_limit(wanted.limit)
    # The primary key of the index, so that no sorting is needed.
    order = [entries.c[name] for name in _order(definition)]
    return (
        statement.where(
            *_bounds(definition, entries, wanted),
            *_behind(definition, order, wanted.after),
            is_ready(definition),
        )
        .order_by(*order)
        .limit(wanted.limit)
    )


def _bounds(
    definition: IndexDefinition, entries: FromClause, wanted: KeyRange
) -> list[ColumnElement[bool]]:
    names = tuple(definition.key)
    ranged = wanted.low is not None or wanted.high is not None
    if len(wanted.prefix) + ranged > len(names):
        raise ValueError(f"{len(wanted.prefix)} values, then a range, exceed the key {names}")
    if any(value is None for value in wanted.prefix):
        raise ValueError(f"a key of {definition.name} has no NULLs: such rows aren't indexed")
    bounds: list[ColumnElement[bool]] = [
        entries.c[name] == value for name, value in zip(names, wanted.prefix, strict=False)
    ]
    if not ranged:
        return bounds
    ranged_by = entries.c[names[len(wanted.prefix)]]
    if wanted.low is not None:
        bounds.append(ranged_by >= literal(wanted.low, ranged_by.type))
    if wanted.high is not None:
        bounds.append(ranged_by < literal(wanted.high, ranged_by.type))
    return bounds


def _behind(
    definition: IndexDefinition, order: Sequence[ColumnElement[Any]], after: IndexEntry | None
) -> list[ColumnElement[bool]]:
    if after is None:
        return []
    last = dict(zip(definition.primary_key, after.primary_key, strict=True))
    last |= dict(zip(definition.key, after.key, strict=True))
    place = [
        literal(last[name], own.type) for name, own in zip(_order(definition), order, strict=True)
    ]
    return [tuple_(*order) > tuple_(*place)]


def _order(definition: IndexDefinition) -> tuple[str, ...]:
    return tuple(definition.key) if definition.unique else definition.entry_identity


def _entry(definition: IndexDefinition, row: Row[Any]) -> IndexEntry:
    values = dict(zip(definition.columns, row, strict=True))
    return IndexEntry(
        key=tuple(values[name] for name in definition.key),
        primary_key=tuple(values[name] for name in definition.primary_key),
        included={name: values[name] for name in definition.include},
    )
