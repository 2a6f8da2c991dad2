"""The SQL of references: lock what is referred to, find who refers."""

from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Select,
    TableValuedAlias,
    Text,
    and_,
    cast,
    exists,
    func,
    literal,
    literal_column,
    select,
)

from datapatterns.errors import IsolationLevelError, ReferenceWriteError
from datapatterns.sharding.references.declared import PlacedReference
from datapatterns.sharding.references.definition import Values
from datapatterns.sharding.routing.guarded import with_guard

_KEYS_AT_ONCE: Final = 10_000


def checked_values(reference: PlacedReference, values: Values) -> Values:
    """Return ``values`` if they are of exactly the columns' types: nothing is converted.

    Raises:
        ReferenceWriteError: One is not; the server might find equal what Python does not.
    """
    for column, value in zip(reference.declared.child, values, strict=True):
        expected = column.type.python_type
        if value is not None and not isinstance(value, expected):
            raise ReferenceWriteError(
                reference.name,
                f"{column.name} is {type(value).__name__}, and has to be {expected.__name__}",
                "pass it as what it is",
            )
    return values


def lock_parents(
    conn: Connection, reference: PlacedReference, keys: Collection[Values]
) -> set[Values]:
    """Keep rows that are referred to from going or getting other keys; return those there are."""
    found: set[Values] = set()
    for some in _some(keys):
        wanted = _wanted(reference.declared.parent, some)
        parents = (
            select(*reference.declared.parent)
            .join_from(
                reference.declared.parent_table, wanted, _equal(reference.declared.parent, wanted)
            )
            .with_for_update(read=True, key_share=True, of=reference.declared.parent_table)
        )
        found.update(tuple(row) for row in conn.execute(parents))
    return found


def existing_parents(
    conn: Connection,
    reference: PlacedReference,
    keys: Collection[Values],
    guard: ColumnElement[bool] | None = None,
) -> set[Values]:
    """Return which keys rows have, as this transaction sees it; locks nothing."""
    found: set[Values] = set()
    for some in _some(keys):
        wanted = _wanted(reference.declared.parent, some)
        parents: Select[Any] = select(*reference.declared.parent).join_from(
            reference.declared.parent_table, wanted, _equal(reference.declared.parent, wanted)
        )
        if guard is not None:
            parents = with_guard(parents, guard)
        found.update(tuple(row) for row in conn.execute(parents))
    return found


def referred_keys(
    conn: Connection,
    reference: PlacedReference,
    keys: Collection[Values],
    guard: ColumnElement[bool],
    confined: ColumnElement[bool],
) -> set[Values]:
    """Return which keys rows of the child's table refer to.

    Args:
        conn: A connection to a shard.
        reference: Which reference.
        keys: What may be referred to.
        guard: Fails the statement unless the shard owns what the map says.
        confined: Which rows are the shard's own.
    """
    child = reference.declared.child
    found: set[Values] = set()
    for some in _some(keys):
        wanted = _wanted(child, some)
        refers = exists(
            select(literal_column("1"))
            .select_from(reference.declared.child_table)
            .where(_equal(child, wanted), confined)
            .correlate(wanted)
        )
        found.update(
            tuple(row) for row in conn.execute(with_guard(select(*wanted.c).where(refers), guard))
        )
    return found


def refuse_old_snapshot(conn: Connection) -> None:
    """Refuse a transaction that cannot see who has come to refer to a row since it began.

    Raises:
        IsolationLevelError: It is not READ COMMITTED.
    """
    level = conn.scalars(select(func.current_setting("transaction_isolation", type_=Text))).one()
    if level != "read committed":
        raise IsolationLevelError(found=level, needed="read committed")


def _wanted(columns: Sequence[Column[Any]], keys: Sequence[Values]) -> TableValuedAlias:
    """Return keys as a table, each value of its column's type."""
    arrays = [
        cast(literal([key[at] for key in keys], ARRAY(column.type)), ARRAY(column.type))
        for at, column in enumerate(columns)
    ]
    names = [f"c{at}" for at in range(len(columns))]
    unnested = func.unnest(*arrays).table_valued(
        *(_typed(name, column) for name, column in zip(names, columns, strict=True)),
        name="wanted",
    )
    return unnested.render_derived()


def _typed(name: str, column: Column[Any]) -> Column[Any]:
    return Column(name, column.type)


def _equal(columns: Sequence[Column[Any]], wanted: TableValuedAlias) -> ColumnElement[bool]:
    return and_(*(column == theirs for column, theirs in zip(columns, wanted.c, strict=True)))


def _some(keys: Collection[Values]) -> list[list[Values]]:
    # In one order, so that two transactions that lock the same rows wait for each other in a line.
    each = iter(sorted(keys, key=repr))
    batches = []
    while some := list(islice(each, _KEYS_AT_ONCE)):
        batches.append(some)
    return batches
