"""Find the shard keys that an INSERT, UPDATE or DELETE is about."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnClause,
    Delete,
    Insert,
    Select,
    Update,
)
from sqlalchemy.dialects.postgresql.dml import OnConflictDoUpdate
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import ShardKeyChangedError, ShardKeyError, UnroutableStatementError
from datapatterns.sharding.footprint import Block, Footprint, block_of, footprint_of_blocks, leaf_of
from datapatterns.sharding.key_conditions import Leaf, Parameters, conjuncts, key_condition
from datapatterns.sharding.placements import Placements
from datapatterns.sharding.strategy import Key

Write: TypeAlias = Insert | Update | Delete


def insert_keys(
    statement: Insert,
    parameters: Sequence[Parameters],
    leaf: Leaf,
    mapper: Mapper[Any] | None,
) -> list[Key]:
    """Return the shard key of each row that ``statement`` inserts.

    Raises:
        ShardKeyChangedError: Its ON CONFLICT would change a key.
        ShardKeyError: A row has none, or one of a wrong type.
        UnroutableStatementError: It inserts what another statement selects.
    """
    if statement.select is not None or statement._independent_ctes:  # noqa: SLF001
        raise UnroutableStatementError(
            "the rows of an INSERT .. SELECT are not known before it runs",
            "insert values, or work on one shard with ShardCluster.connect()",
        )
    names = _names(leaf, mapper)
    conflict = statement._post_values_clause  # noqa: SLF001 -- there is no public name
    if isinstance(conflict, OnConflictDoUpdate) and names.intersection(
        str(getattr(column, "key", column)) for column in conflict.update_values_to_set
    ):
        raise _changed(leaf)
    group = leaf.shard_key.group
    rows = list(_inserted(statement, parameters))
    return [group.checked_key(_key_value(row, names, group.name)) for row in rows]


def changed_rows(
    statement: Update | Delete,
    parameters: Sequence[Parameters],
    placements: Placements,
    mapper: Mapper[Any] | None,
) -> tuple[Footprint, frozenset[int] | None]:
    """Return what ``statement`` reads, and the buckets of all rows that it can change.

    Raises:
        ShardKeyChangedError: It sets a shard key.
        UnroutableStatementError: It uses other tables beside its own.
    """
    leaf = leaf_of(statement.table, placements)
    names = _names(leaf, mapper)
    by_primary_key = isinstance(statement, Update) and statement.whereclause is None
    if isinstance(statement, Update):
        _refuse_new_key(statement, () if by_primary_key else parameters, leaf, names)
    _refuse_other_tables(statement, leaf)
    conditions = [key_condition(clause, [leaf]) for clause in conjuncts(statement.whereclause)]
    own = Block((leaf,), True, False, tuple(found for found in conditions if found is not None))
    nested = [
        block_of(part, placements)
        for part in visitors.iterate(statement)
        if isinstance(part, Select)
    ]
    footprint = footprint_of_blocks(
        statement, [own, *(block for block in nested if block.leaves)], placements, plain=not nested
    )
    if by_primary_key and parameters and names.intersection(parameters[0]):
        group = leaf.shard_key.group
        keys = [group.checked_key(_key_value(row, names, group.name)) for row in parameters]
        return footprint, group.strategy.buckets_for("in", keys)
    if len(parameters) > 1:
        each = [footprint.buckets(row) for row in parameters]
        known = [buckets for buckets in each if buckets is not None]
        return footprint, frozenset().union(*known) if len(known) == len(each) else None
    return footprint, footprint.buckets(parameters[0] if parameters else {})


def _refuse_new_key(
    statement: Update, parameters: Sequence[Parameters], leaf: Leaf, names: frozenset[str]
) -> None:
    assigned = [
        *(statement._values or {}),  # noqa: SLF001 -- there is no public name
        *(name for row in parameters for name in row),
    ]
    if names.intersection(str(getattr(column, "key", column)) for column in assigned):
        raise _changed(leaf)


def _refuse_other_tables(statement: Update | Delete, leaf: Leaf) -> None:
    """UPDATE .. FROM and DELETE .. USING follow from columns of other tables in the statement."""
    if statement._independent_ctes:  # noqa: SLF001 -- there is no public name
        raise UnroutableStatementError("the statement has a WITH", "run its parts one by one")
    for part in _outside_selects(statement):
        if isinstance(part, ColumnClause) and not _belongs(part, leaf):
            raise UnroutableStatementError(
                f"an UPDATE or DELETE uses columns beside those of {leaf.name!r}",
                "put them into a subquery that compares the shard key",
            )


def _belongs(column: ColumnClause[Any], leaf: Leaf) -> bool:
    table = getattr(column, "table", None)
    return table is None or hash(table) == hash(leaf.used)


def _outside_selects(element: ClauseElement) -> Iterator[ClauseElement]:
    yield element
    for child in element.get_children():
        if not isinstance(child, SelectBase):
            yield from _outside_selects(child)


def _inserted(statement: Insert, parameters: Sequence[Parameters]) -> Iterator[Mapping[str, Any]]:
    """Yield what each row is given, by the names of columns or attributes."""
    constant = _named(statement._values or {})  # noqa: SLF001 -- there is no public name
    several: Any = statement._multi_values  # noqa: SLF001 -- there is no public name
    if several:
        for row in chain.from_iterable(several):
            by_name = row if isinstance(row, Mapping) else dict(zip(statement.table.c, row))  # noqa: B905 -- a short row leaves columns out
            yield _named(by_name)
    elif parameters:
        yield from ({**constant, **row} for row in parameters)
    else:
        yield constant


def _named(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(getattr(column, "key", column)): value for column, value in values.items()}


def _key_value(row: Mapping[str, Any], names: frozenset[str], group: str) -> object:
    given = [row[name] for name in names if name in row]
    if len(given) != 1:
        raise ShardKeyError(group, f"a row has no value for {sorted(names)}; give it one")
    (value,) = given
    if isinstance(value, BindParameter):
        return value.effective_value
    if isinstance(value, ClauseElement):
        raise ShardKeyError(group, "it is computed by the server; pass its value")
    return value


def _names(leaf: Leaf, mapper: Mapper[Any] | None) -> frozenset[str]:
    """The key's column may be known by its attribute, too."""
    column: Column[Any] = leaf.table.columns[leaf.shard_key.column]
    names = {column.key, column.name}
    if mapper is not None and mapper.columns.contains_column(column):
        names.add(mapper.get_property_by_column(column).key)
    return frozenset(names)


def _changed(leaf: Leaf) -> ShardKeyChangedError:
    return ShardKeyChangedError(table=leaf.name, column=leaf.shard_key.column)
