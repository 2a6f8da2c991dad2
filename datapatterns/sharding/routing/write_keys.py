"""Find the shard keys that an INSERT, UPDATE or DELETE is about."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias, cast

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
from sqlalchemy.orm import Mapper, ORMExecuteState
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import ShardKeyChangedError, ShardKeyError, UnroutableStatementError
from datapatterns.sharding.key_types import is_plain_key_type
from datapatterns.sharding.routing.footprint import (
    Block,
    Footprint,
    block_of,
    footprint_of_blocks,
    leaf_of,
    refuse_change,
    refuse_text,
)
from datapatterns.sharding.routing.key_conditions import Leaf, Parameters, conjuncts, key_condition
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.strategies.strategy import Key

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
        UnroutableStatementError: It inserts what another statement selects, or has parameters
            beside the VALUES of several rows.
    """
    if statement.select is not None or statement._independent_ctes:  # noqa: SLF001
        raise UnroutableStatementError(
            "the rows of an INSERT .. SELECT are not known before it runs",
            "insert values, or work on one shard with ShardCluster.connect()",
        )
    if statement._multi_values and any(parameters):  # noqa: SLF001
        # Of a class, SQLAlchemy leaves them out; of a table it does not.
        raise UnroutableStatementError(
            "parameters beside the VALUES of several rows", "write their values into the rows"
        )
    names = _names(leaf, mapper)
    all_names = frozenset[str]().union(*names)
    conflict = statement._post_values_clause  # noqa: SLF001 -- there is no public name
    if isinstance(conflict, OnConflictDoUpdate) and all_names.intersection(
        str(getattr(column, "key", column)) for column in conflict.update_values_to_set
    ):
        raise _changed(leaf)
    group = leaf.shard_key.group
    rows = list(inserted_rows(statement, parameters))
    replaced = (
        conflict.update_values_to_set.values() if isinstance(conflict, OnConflictDoUpdate) else ()
    )
    written = chain(replaced, *(row.values() for row, _ in rows))
    for part in (statement, conflict, *written):
        if isinstance(part, ClauseElement):
            refuse_subqueries(part)
    columns = [leaf.table.c[name] for name in leaf.shard_key.columns]
    if len(columns) == 1:
        of_key, column = names[0], columns[0]
        return [
            group.stored_key(_key_value(row, of_key, group.name, passed), column)
            for row, passed in rows
        ]
    return [
        group.stored_key(_key_in(row, names, group.name, passed), *columns) for row, passed in rows
    ]


def changed_rows(
    statement: Update | Delete,
    parameters: Sequence[Parameters],
    placements: Placements,
    mapper: Mapper[Any] | None,
    *,
    by_primary_key: bool,
) -> tuple[Footprint, frozenset[Key] | None]:
    """Return what ``statement`` reads, and the keys of all rows that it can use.

    Args:
        statement: What is to be executed.
        parameters: With these parameters.
        placements: What was declared about tables.
        mapper: Of the class that the statement is about.
        by_primary_key: Whether the parameters are rows, as `updates_by_primary_key` tells.

    Raises:
        ShardKeyChangedError: It sets a shard key.
        UnroutableStatementError: It uses other tables beside its own.
    """
    leaf = leaf_of(statement.table, placements)
    names = _names(leaf, mapper)
    if isinstance(statement, Update):
        all_names = frozenset[str]().union(*names)
        _refuse_new_key(statement, () if by_primary_key else parameters, leaf, all_names)
    _refuse_other_tables(statement, leaf)
    conditions = [key_condition(clause, [leaf]) for clause in conjuncts(statement.whereclause)]
    own = Block(
        (leaf,),
        True,
        False,
        tuple(found for found in conditions if found is not None),
        composite=leaf.shard_key.is_composite,
    )
    nested = [
        block_of(part, placements)
        for part in visitors.iterate(statement)
        if isinstance(part, Select)
    ]
    footprint = footprint_of_blocks(
        statement, [own, *(block for block in nested if block.leaves)], placements, plain=not nested
    )
    if by_primary_key:
        for value in chain(*(row.values() for row in parameters)):
            if isinstance(value, ClauseElement):
                refuse_subqueries(value)
        return footprint, frozenset(keys_of_rows(statement, parameters, placements, mapper))
    each = [footprint.keys(row) for row in parameters or ({},)]
    known = [keys for keys in each if keys is not None]
    return footprint, frozenset().union(*known) if len(known) == len(each) else None


def keys_of_rows(
    statement: Update | Delete,
    parameters: Sequence[Parameters],
    placements: Placements,
    mapper: Mapper[Any] | None,
) -> list[Key]:
    """Return the shard key of each row that is changed by its primary key, in their order.

    Raises:
        ShardKeyError: A row has none.
    """
    leaf = leaf_of(statement.table, placements)
    names, group = _names(leaf, mapper), leaf.shard_key.group
    return [group.checked_key(_key_in(row, names, group.name)) for row in parameters]


def updates_by_primary_key(state: ORMExecuteState) -> bool:
    """Return whether SQLAlchemy takes the parameters of an UPDATE for rows with primary keys.

    It does so for a list and a mapped class only. Else they are what all rows are set to.
    """
    statement = state.statement
    return (
        isinstance(statement, Update)
        and statement.whereclause is None
        and isinstance(state.parameters, list)
        and "parententity" in statement.table._annotations  # noqa: SLF001 -- as SQLAlchemy asks
        and state.execution_options.get("dml_strategy", "auto") in {"auto", "bulk"}
    )


def refuse_subqueries(written: ClauseElement) -> None:
    """Refuse what is written if it is read on the one shard that it is written to.

    Raises:
        UnroutableStatementError: It contains another statement, or SQL text.
    """
    for part in visitors.iterate(written):
        refuse_text(cast("ClauseElement", part))
        if part is not written:
            refuse_change(cast("ClauseElement", part))
        if isinstance(part, SelectBase):
            raise UnroutableStatementError(
                "a written value is a subquery, which would see one shard",
                "read it before, and write its value",
            )


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


def inserted_rows(
    statement: Insert, parameters: Sequence[Parameters]
) -> Iterator[tuple[Mapping[str, Any], Parameters]]:
    """Yield what each row is given, by the names of columns or attributes, and its parameters."""
    constant = written_by_name(statement._values or {})  # noqa: SLF001 -- there is no public name
    several: Any = statement._multi_values  # noqa: SLF001 -- there is no public name
    if several:
        for row in chain.from_iterable(several):
            by_name = row if isinstance(row, Mapping) else dict(zip(statement.table.c, row))  # noqa: B905 -- a short row leaves columns out
            yield written_by_name(by_name), {}
    elif parameters:
        yield from (({**constant, **row}, row) for row in parameters)
    else:
        yield constant, {}


def written_by_name(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what columns are set to, by their names as a statement has them."""
    return {str(getattr(column, "key", column)): value for column, value in values.items()}


def _key_in(
    row: Mapping[str, Any],
    names: Sequence[frozenset[str]],
    group: str,
    passed: Parameters | None = None,
) -> object:
    if len(names) == 1:
        return _key_value(row, names[0], group, passed)
    return tuple(_key_value(row, of_part, group, passed) for of_part in names)


def _key_value(
    row: Mapping[str, Any], names: frozenset[str], group: str, passed: Parameters | None = None
) -> object:
    given = [row[name] for name in names if name in row]
    if len(given) != 1:
        raise ShardKeyError(group, f"a row has no value for {sorted(names)}; give it one")
    (value,) = given
    if isinstance(value, BindParameter) and value.callable is not None:
        raise ShardKeyError(group, "it is computed when it is sent; pass its value")
    if isinstance(value, BindParameter) and is_plain_key_type(value.type):
        # What is passed with the statement prevails over what the parameter was made with.
        return (passed or {}).get(value.key, value.effective_value)
    if isinstance(value, ClauseElement):
        raise ShardKeyError(group, "it is computed by the server; pass its value")
    return value


def _names(leaf: Leaf, mapper: Mapper[Any] | None) -> tuple[frozenset[str], ...]:
    """A column of the key may be known by its attribute, too."""
    columns = [leaf.table.columns[name] for name in leaf.shard_key.columns]
    return tuple(names_of(column, mapper) for column in columns)


def names_of(column: Column[Any], mapper: Mapper[Any] | None) -> frozenset[str]:
    """Return what statements may call a column: by its name, or that of its attribute."""
    names = {column.key, column.name}
    if mapper is not None and mapper.columns.contains_column(column):
        names.add(mapper.get_property_by_column(column).key)
    return frozenset(names)


def _changed(leaf: Leaf) -> ShardKeyChangedError:
    return ShardKeyChangedError(table=leaf.name, column=leaf.shard_key.named)
