"""Find rows of the base table by a key, through its index.

The base table comes first in every statement, as in a TRUNCATE and its trigger: locks on tables are
taken in the order of the FROM clause, and the other order could deadlock.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Enum,
    FromClause,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    cast,
    column,
    select,
    true,
    tuple_,
    values,
)

from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.schema import entry_table
from datapatterns.index_table.states import index_status, is_ready, reading, require_ready

Miss = Literal["refuse", "scan"]
"""What a look-up does while the index is being built: refuse, or read the base table."""

LOOKUP_KEYS_MAX = 1000
"""At most how many keys one look-up asks for."""

Source = Literal["index", "scan"]
"""What a look-up reads."""

_WANTED = "datapatterns_wanted"


def lookup_rows(
    conn: Connection,
    definition: IndexDefinition,
    key: Sequence[Any],
    *,
    limit: int,
    after: Sequence[Any] | None,
    miss: Miss,
) -> list[Row[Any]]:
    """Return the rows with ``key``, by ascending primary key, at most ``limit``."""
    check_limit(limit)
    given = _key_values(definition, key) | {"row_limit": limit}
    if after is not None:
        if len(after) != len(definition.primary_key):
            raise ValueError(f"after={after!r}: a primary key is {definition.primary_key}")
        given |= {f"after_{ordinal}": value for ordinal, value in enumerate(after)}
    paged = after is not None
    with reading(definition):
        rows = conn.execute(_by_key(definition, "index", paged=paged), given).all()
    if not rows:
        source = source_after_miss(conn, definition, miss)
        rows = conn.execute(_by_key(definition, source, paged=paged), given).all()
    return list(rows)


def lookup_rows_by_keys(
    conn: Connection,
    definition: IndexDefinition,
    keys: Iterable[Sequence[Any]],
    *,
    limit_per_key: int,
    miss: Miss,
) -> list[list[Row[Any]]]:
    """Return for each of ``keys`` what `lookup_rows` would, in one statement."""
    check_limit(limit_per_key)
    asked = [tuple(_key_values(definition, key).values()) for key in keys]
    if len(asked) > LOOKUP_KEYS_MAX:
        raise ValueError(f"{len(asked)} keys; ask for at most {LOOKUP_KEYS_MAX} at once")
    if not asked:
        return []
    found = _fetch_by_keys(conn, definition, "index", asked, limit_per_key)
    # One row is enough to know that the index was ready when it was asked.
    if not any(found):
        source = source_after_miss(conn, definition, miss)
        found = _fetch_by_keys(conn, definition, source, asked, limit_per_key)
    return found


def joined(definition: IndexDefinition) -> FromClause:
    """Return base rows and their index rows, if both still agree on the key."""
    base, entries = definition.base, entry_table(definition)
    projection = definition.projection(base)
    # The re-check: an index row that has lost its row, or whose row has moved on, may cost
    # time but never gives a wrong answer.
    return base.join(
        entries,
        and_(
            *(projection[name] == entries.c[name] for name in definition.entry_identity),
            definition.is_indexed(base),
        ),
    )


def source_after_miss(conn: Connection, definition: IndexDefinition, miss: Miss) -> Source:
    """Return what to read again after nothing was found.

    Asked only then, so that a hit stays one statement. The index may have become ready since
    it was read: a miss is certain only when it was ready before.
    """
    if miss == "scan" and index_status(conn, definition).state != "ready":
        return "scan"
    require_ready(conn, definition)
    return "index"


def check_limit(limit: int) -> None:
    """Raise ValueError unless ``limit`` asks for something."""
    if limit < 1:
        raise ValueError(f"limit={limit}: ask for at least one row")


@cache
def _by_key(definition: IndexDefinition, source: Source, *, paged: bool) -> Select[Any]:
    # Built once for each index; building takes longer than running it.
    base, entries = definition.base, entry_table(definition)
    own_key = definition.projection(base)
    given = {
        name: bindparam(f"key_{ordinal}", type_=own_key[name].type)
        for ordinal, name in enumerate(definition.key)
    }
    order: list[ColumnElement[Any]] = list(base.primary_key.columns)
    statement = select(*base.columns).where(
        *(own_key[name] == value for name, value in given.items()), definition.is_indexed(base)
    )
    if source == "index":
        order = [entries.c[name] for name in definition.primary_key]
        statement = statement.select_from(joined(definition)).where(
            *(entries.c[name] == value for name, value in given.items()), is_ready(definition)
        )
    if paged:
        last = [bindparam(f"after_{ordinal}", type_=own.type) for ordinal, own in enumerate(order)]
        statement = statement.where(tuple_(*order) > tuple_(*last))
    return statement.order_by(*order).limit(bindparam("row_limit", type_=Integer))


def _fetch_by_keys(
    conn: Connection,
    definition: IndexDefinition,
    source: Source,
    asked: Sequence[tuple[Any, ...]],
    limit_per_key: int,
) -> list[list[Row[Any]]]:
    base, entries = definition.base, entry_table(definition)
    own_key = definition.projection(base)
    columns = [column(f"key_{n}", own_key[name].type) for n, name in enumerate(definition.key)]
    wanted = (
        values(column("ordinal", Integer), *columns, name=_WANTED)
        .data([(ordinal, *key) for ordinal, key in enumerate(asked)])
        .alias(_WANTED)
    )
    keys = {name: _typed(wanted.c[f"key_{n}"]) for n, name in enumerate(definition.key)}
    rows = select(*base.columns).where(
        *(own_key[name] == value for name, value in keys.items()), definition.is_indexed(base)
    )
    order: list[ColumnElement[Any]] = list(base.primary_key.columns)
    if source == "index":
        order = [entries.c[name] for name in definition.primary_key]
        rows = rows.select_from(joined(definition)).where(
            *(entries.c[name] == value for name, value in keys.items()), is_ready(definition)
        )
    found = rows.order_by(*order).limit(limit_per_key).lateral("found")
    statement = (
        select(wanted.c.ordinal, *found.c)
        .select_from(wanted.join(found, true()))
        .order_by(wanted.c.ordinal, *(found.c[own.key] for own in base.primary_key.columns))
    )
    with reading(definition):
        result = conn.execute(statement).freeze()
    grouped: list[list[Row[Any]]] = [[] for _ in asked]
    for (ordinal,), row in zip(
        result().columns(0), result().columns(*range(1, len(base.columns) + 1)), strict=True
    ):
        grouped[ordinal].append(row)
    return grouped


def _typed(given: ColumnElement[Any]) -> ColumnElement[Any]:
    # In VALUES, PostgreSQL takes an enumeration's labels for text.
    return cast(given, given.type) if isinstance(given.type, Enum) else given


def _key_values(definition: IndexDefinition, key: Sequence[Any]) -> dict[str, Any]:
    names = tuple(definition.key)
    if len(key) != len(names):
        raise ValueError(f"{len(key)} values for the key {names}; for a part of it use a range")
    if any(value is None for value in key):
        raise ValueError(f"a key of {definition.name} has no NULLs: such rows aren't indexed")
    return {f"key_{ordinal}": value for ordinal, value in enumerate(key)}
