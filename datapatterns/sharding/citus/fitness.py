"""What stands in the way of distributing an application's tables by Citus.

What Citus refuses is read in its documentation and source, of versions 11 to 13.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    Column,
    Dialect,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ExcludeConstraint

from datapatterns.sharding.definition import EntityGroup, ShardKey

# With one shard of its own for each key there is no column to hash.
_BY_NAME = ("list", "directory")
_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class CitusFinding:
    """One thing that Citus would refuse, or do otherwise.

    Attributes:
        table: The table; or the group, if it is about all of its tables.
        problem: What it is.
        advice: What to do instead.
        severity: ``error``: Citus refuses it; ``advice``: it works otherwise than now.
    """

    table: str
    problem: str
    advice: str
    severity: Literal["error", "advice"] = "error"

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.table}: {self.problem}; {self.advice}"


def findings_of(
    tables: Mapping[Table, ShardKey], broadcast: Sequence[Table]
) -> tuple[CitusFinding, ...]:
    """Return what stands in the way, by table; asks no server."""
    found = list(_groups(tables))
    for table, key in tables.items():
        if key.is_composite:
            continue  # it is told of its group
        found += _of_sharded(table, key, tables, broadcast)
    for table in broadcast:
        found += _of_broadcast(table, broadcast)
    return tuple(sorted(found, key=lambda each: (each.table, each.problem)))


def by_name(group: EntityGroup) -> bool:
    """Return whether keys are placed one by one, for which Citus has schemas and no column."""
    return group.strategy.kind in _BY_NAME


def leaders(tables: Mapping[Table, ShardKey]) -> dict[EntityGroup, Table]:
    """Return the first table of each group, which the others lie with."""
    found: dict[EntityGroup, Table] = {}
    for table, key in tables.items():
        found.setdefault(key.group, table)
    return found


def _groups(tables: Mapping[Table, ShardKey]) -> Iterator[CitusFinding]:
    for group in leaders(tables):
        if len(group.key_types) > 1:
            yield CitusFinding(
                group.name,
                f"its keys are two columns ({group.key_type}), and Citus distributes by one",
                "declare a group by the column that tells more, such as the tenant",
            )
        if group.strategy.kind == "range":
            yield CitusFinding(
                group.name,
                "its keys are placed by ranges, and Citus places by hash only",
                "let it be spread by hash there; queries over ranges then ask all nodes",
                "advice",
            )
        if by_name(group):
            yield CitusFinding(
                group.name,
                f"its keys are placed by name ({group.strategy.kind})",
                "give each key a schema of its own and distribute schemas, or hash the key",
                "advice",
            )


def _of_sharded(
    table: Table,
    key: ShardKey,
    tables: Mapping[Table, ShardKey],
    broadcast: Sequence[Table],
) -> Iterator[CitusFinding]:
    column = table.columns[key.column]
    leader = leaders(tables)[key.group]
    expected = leader.columns[tables[leader].column]
    if _sql_type(column) != _sql_type(expected):
        yield CitusFinding(
            table.name,
            f"{column.name} is {_sql_type(column)}, {leader.name}.{expected.name} is"
            f" {_sql_type(expected)}",
            "tables lie together only by columns of one type; let both have it",
        )
    if column.computed is not None:
        yield CitusFinding(
            table.name, f"{column.name} is generated", "store the key, Citus cannot compute it"
        )
    yield from _unique(table, key)
    for constraint in table.foreign_key_constraints:
        yield from _reference(constraint, key, tables, broadcast)
    yield from _anything(table)


def _unique(table: Table, key: ShardKey) -> Iterator[CitusFinding]:
    for constraint in table.constraints:
        if not isinstance(constraint, UniqueConstraint | PrimaryKeyConstraint | ExcludeConstraint):
            continue
        if not constraint.columns.keys() and isinstance(constraint, PrimaryKeyConstraint):
            continue
        names = {each.name for each in constraint.columns}
        if key.column not in names:
            yield CitusFinding(
                table.name,
                f"{_named(constraint)} does not include {key.column}",
                "add it, or look values up by an index table",
            )
        elif isinstance(constraint, ExcludeConstraint) and (
            {name: operator for _, name, operator in _excluded(constraint)}[key.column] != "="
        ):
            yield CitusFinding(
                table.name,
                f"{_named(constraint)} compares {key.column} otherwise than by =",
                "let it compare the key by =",
            )
    for index in table.indexes:
        if index.unique and key.column not in _index_columns(index):
            yield CitusFinding(
                table.name,
                f"unique index {index.name} does not include {key.column}",
                "add it, or look values up by an index table",
            )


def _reference(
    constraint: ForeignKeyConstraint,
    key: ShardKey,
    tables: Mapping[Table, ShardKey],
    broadcast: Sequence[Table],
) -> Iterator[CitusFinding]:
    target = constraint.referred_table
    here, what = constraint.parent.name, f"{_named(constraint)} to {target.name}"
    includes = key.column in constraint.column_keys
    if target in broadcast:
        pass
    elif target not in tables:
        yield CitusFinding(here, what, "make that table Broadcast(), or shard it by the same key")
        return
    elif tables[target].group != key.group:
        yield CitusFinding(here, f"{what}, of another group", "drop it: they lie elsewhere")
        return
    else:
        pairs = {element.parent.name: element.column.name for element in constraint.elements}
        if pairs.get(key.column) != tables[target].column:
            yield CitusFinding(
                here, f"{what} does not join {key.column}", "let it include the key on both sides"
            )
    deleting, updating = _action(constraint.ondelete), _action(constraint.onupdate)
    if includes and (
        deleting in {"SET NULL", "SET DEFAULT"}
        or updating in {"SET NULL", "SET DEFAULT", "CASCADE"}
    ):
        yield CitusFinding(
            here,
            f"{what} would change the key (ON DELETE {deleting}, ON UPDATE {updating})",
            "leave it to the application",
        )


def _of_broadcast(table: Table, broadcast: Sequence[Table]) -> Iterator[CitusFinding]:
    for constraint in table.foreign_key_constraints:
        if constraint.referred_table not in broadcast:
            yield CitusFinding(
                table.name,
                f"{_named(constraint)} to {constraint.referred_table.name}",
                "a table that is everywhere can refer to such tables only; drop it",
            )
    yield from _anything(table)


def _anything(table: Table) -> Iterator[CitusFinding]:
    if table.dialect_options["postgresql"]["inherits"]:
        yield CitusFinding(table.name, "it inherits", "use partitions, or tables by themselves")
    for column in table.columns:
        if _counts(column) and isinstance(column.type, Integer | SmallInteger):
            yield CitusFinding(
                table.name,
                f"{column.name} counts in {_sql_type(column)}",
                "numbers that nodes draw need bigint; use ids of ShardCluster.ids()",
            )


def _counts(column: Column[Any]) -> bool:
    if _sql_type(column) == "BIGINT":
        return False
    return isinstance(column.identity, Identity) or column.autoincrement is True


def _action(written: str | None) -> str:
    return (written or "NO ACTION").upper()


def _named(constraint: Any) -> str:  # noqa: ANN401 -- any constraint
    kind = {
        PrimaryKeyConstraint: "primary key",
        UniqueConstraint: "unique constraint",
        ExcludeConstraint: "exclusion constraint",
        ForeignKeyConstraint: "foreign key",
    }[type(constraint)]
    columns = ", ".join(each.name for each in constraint.columns)
    return f"{kind} {constraint.name or f'({columns})'}"


def _excluded(constraint: ExcludeConstraint) -> Sequence[tuple[Any, Any, Any]]:
    return constraint._render_exprs  # noqa: SLF001 -- there is no public name


def _index_columns(index: Index) -> set[str]:
    return {each.name for each in index.columns}


def _sql_type(column: Column[Any]) -> str:
    return str(column.type.compile(dialect=_DIALECT))
