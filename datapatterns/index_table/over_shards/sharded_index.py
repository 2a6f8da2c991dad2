"""An index over shards: its group, its own table, and how its entries are written as texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Enum,
    FromClause,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    Time,
    Uuid,
    cast,
    func,
)
from sqlalchemy.types import NullType, TypeEngine

from datapatterns.errors import IndexDefinitionError
from datapatterns.index_table.definition import IndexDefinition
from datapatterns.index_table.over_shards.net_changes import Entry, Texts
from datapatterns.index_table.statements import rendered
from datapatterns.sharding.definition import INFO_KEY, EntityGroup, ShardKey
from datapatterns.sharding.key_types import COLUMN_TYPES, SQL_TYPES, KeyTypeName
from datapatterns.sharding.strategies import Hash
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.sql.metadata import declared_once

CLAIM: Final = "claim"
CLAIMED_AT: Final = "claimed_at"

# Exactly these: of others two equal values may be written in two ways, or compare otherwise.
_EXACT_TYPES: Final = frozenset[type[TypeEngine[Any]]](
    (Boolean, LargeBinary, Date, Time, DateTime)
).union(*COLUMN_TYPES.values())


@dataclass(frozen=True, slots=False, eq=False)
class ShardedIndex:
    """An index table that is sharded by the first column of its key.

    Attributes:
        definition: What was declared.
        group: What its own rows are sharded by.
        table: Its own table, beside that of its rows.
    """

    definition: IndexDefinition
    group: EntityGroup
    table: Table

    @property
    def name(self) -> str:
        """Return its name."""
        return self.definition.name

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the columns of an entry: key and primary key, each once."""
        return self.definition.entry_identity

    @cached_property
    def key_columns(self) -> tuple[Column[Any], ...]:
        """Return the columns of its own table that hold the key."""
        return tuple(self.table.c[name] for name in self.definition.key)

    @cached_property
    def row_columns(self) -> tuple[Column[Any], ...]:
        """Return the columns of its own table that say which row it is."""
        return tuple(self.table.c[name] for name in self.definition.primary_key)

    @cached_property
    def identity(self) -> tuple[Column[Any], ...]:
        """Return the columns of which no two entries have the same."""
        return self.key_columns if self.definition.unique else self.entry_columns

    @cached_property
    def entry_columns(self) -> tuple[Column[Any], ...]:
        """Return the columns of key and primary key."""
        return tuple(self.table.c[name] for name in self.names)

    @cached_property
    def _places(self) -> tuple[list[int], list[int]]:
        of_key = [self.names.index(name) for name in self.definition.key]
        return of_key, [self.names.index(name) for name in self.definition.primary_key]

    def entry(self, texts: Sequence[str]) -> Entry:
        """Return the entry that was written as the texts of `names`."""
        of_key, of_row = self._places
        return Entry(tuple(texts[at] for at in of_key), tuple(texts[at] for at in of_row))

    def texts(self, entry: Entry) -> Texts:
        """Return the texts of `names` of an entry."""
        values = {
            **dict(zip(self.definition.primary_key, entry.row, strict=True)),
            **dict(zip(self.definition.key, entry.key, strict=True)),
        }
        return tuple(values[name] for name in self.names)

    def place(self, key: Texts) -> Key:
        """Return what decides on which shard the entries of a key are."""
        return self.group.parsed_key(key[0])

    def as_texts(self, rows: FromClause, names: Sequence[str]) -> list[ColumnElement[str]]:
        """Return columns of an entry as texts, computed from ``rows`` of the base table."""
        computed = self.definition.projection(rows)
        return [as_text(computed[name]) for name in names]


def as_text(value: ColumnElement[Any]) -> ColumnElement[str]:
    """Return a value as the server writes it, which it reads again as the same."""
    return cast(value, Text)


def from_text(text: ColumnElement[str], column: Column[Any]) -> ColumnElement[Any]:
    """Return the value that `as_text` has written, as one of ``column``."""
    # A cast takes no collation; text goes into every column of characters.
    is_text = isinstance(column.type, String) and not isinstance(column.type, Enum)
    return text if is_text else cast(text, column.type)


@declared_once
def sharded_index(definition: IndexDefinition) -> ShardedIndex:
    """Return the index over shards; its table is put beside that of its rows.

    Raises:
        IndexDefinitionError: It can't be kept over shards.
    """
    _check_names(definition)
    columns = definition.projection(definition.base)
    for name in definition.entry_identity:
        _check_type(definition, name, columns[name])
    try:
        group = EntityGroup(
            definition.name,
            strategy=Hash(buckets=definition.buckets),
            key=SQL_TYPES[_key_type(definition)],
        )
    except ValueError as error:
        raise IndexDefinitionError(definition.name, str(error)) from error
    shard_key = group.by(next(iter(definition.key)))
    return ShardedIndex(definition, group, _table(definition, shard_key))


def _table(definition: IndexDefinition, shard_key: ShardKey) -> Table:
    identity = definition.key if definition.unique else definition.entry_identity
    base = definition.base
    table = Table(
        definition.name,
        base.metadata,
        *(
            Column(
                name,
                _own_type(name, expression.type, definition),
                nullable=name not in definition.entry_identity,
                autoincrement=False,
            )
            for name, expression in definition.projection(base).items()
        ),
        Column(CLAIM, Uuid, nullable=False),
        Column(CLAIMED_AT, DateTime(timezone=True), nullable=False, server_default=func.now()),
        PrimaryKeyConstraint(*identity, name=f"pk_{definition.name}"),
        Index(f"ix_{definition.name}_row", *definition.primary_key),
        schema=base.schema,
        info={INFO_KEY: shard_key},
    )
    shard_key.checked_columns(table)
    return table


def _own_type(name: str, declared: TypeEngine[Any], definition: IndexDefinition) -> TypeEngine[Any]:
    if name in definition.entry_identity and type(declared) in COLUMN_TYPES["text"]:
        return Text(collation="C")  # equal bytes, equal keys, on every server
    return declared


def _key_type(definition: IndexDefinition) -> KeyTypeName:
    name, expression = next(iter(definition.key.items()))
    for type_name, types in COLUMN_TYPES.items():
        if type(expression.type) in types:
            return type_name
    raise IndexDefinitionError(
        definition.name,
        f"it is sharded by the first column of its key, and {name} is"
        f" {type(expression.type).__name__}; begin with a text, an integer or a UUID",
    )


def _check_names(definition: IndexDefinition) -> None:
    base = definition.base
    if (taken := {CLAIM, CLAIMED_AT} & {*definition.columns}) != set():
        raise IndexDefinitionError(
            definition.name, f"it has columns {sorted(taken)} of its own; give them other names"
        )
    full_name = definition.name if base.schema is None else f"{base.schema}.{definition.name}"
    if full_name in base.metadata.tables:
        raise IndexDefinitionError(
            definition.name,
            f"its table lies beside {base.fullname}, where another is called so; rename one",
        )


def _check_type(definition: IndexDefinition, name: str, value: ColumnElement[Any]) -> None:
    if type(value.type) is NullType:
        raise IndexDefinitionError(
            definition.name,
            f"nobody has said of which type {rendered(value)} is; write it, as in"
            " func.lower(email, type_=Text)",
        )
    if type(value.type) not in _EXACT_TYPES:
        raise IndexDefinitionError(
            definition.name,
            f"{name} is {type(value.type).__name__}, of which equal values need not be the same;"
            " index a text, a number without fraction, a UUID, a date or a time",
        )
