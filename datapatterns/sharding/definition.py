"""What an application declares: groups of tables that share a shard key."""

import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Column, ColumnElement, Table, Uuid, inspect, type_coerce
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from datapatterns.errors import ShardedTableError, ShardKeyError
from datapatterns.sharding.key_types import (
    COLUMN_TYPES,
    PYTHON_TYPES,
    KeyTypeName,
    SqlKeyType,
    checked_part,
    is_plain_key_type,
    key_type_name,
    parsed_part,
    written_parts,
)
from datapatterns.sharding.placeable import check_strategy
from datapatterns.sharding.strategies import Hash, Key, KeyPart, ShardingStrategy
from datapatterns.sharding.strategies.stored import final_part
from datapatterns.sql.metadata import DEFAULT_SCHEMA

KeyColumns: TypeAlias = ColumnElement[Any] | tuple[ColumnElement[Any], ColumnElement[Any]]
"""The column that holds the key of a row, or both."""

_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PARTS = 2

INFO_KEY = "shard"
"""Where a `Table` that no class is mapped to carries its `ShardKey`: in ``Table.info``."""


@dataclass(frozen=True, slots=True)
class EntityGroup:
    """Tables whose rows live together, by one shard key: a tenant, a household, a customer.

    All rows of a key are on one shard, so within a key joins, foreign keys and transactions are
    those of one database.

    Attributes:
        name: What the stored map is found by.
        strategy: Which bucket holds a key when the map is created. From then on the map knows, in
            which ranges are split and merged, keys are listed, assigned and pinned.
        key: The SQL type of the key: `BigInteger`, `Text` or `Uuid`; for `Composite`, a pair of
            them.
    """

    name: str
    strategy: ShardingStrategy = field(default_factory=Hash)
    key: SqlKeyType | tuple[SqlKeyType, SqlKeyType] = BigInteger
    _keys: "list[ShardKey]" = field(default_factory=list, init=False, repr=False, compare=False)
    key_types: tuple[KeyTypeName, ...] = field(init=False, repr=False, compare=False)
    """The types of the key's columns by their names in PostgreSQL."""

    def __post_init__(self) -> None:
        if not _GROUP_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot name a group; use a-z, 0-9 and _")
        types = self.key if isinstance(self.key, tuple) else (self.key,)
        object.__setattr__(self, "key_types", tuple(map(key_type_name, types)))
        check_strategy(self.name, self.strategy, self.key_types)

    @property
    def key_type(self) -> str:
        """Return the key's type by its name in PostgreSQL; the types of both columns, if two."""
        return ",".join(self.key_types)

    @property
    def python_type(self) -> type[KeyPart]:
        """Return the type of the keys in Python; if they are two columns, of the first."""
        return PYTHON_TYPES[self.key_types[0]]

    @property
    def fingerprint(self) -> str:
        """Return what must stay the same for as long as there is data."""
        declared = f"{self.strategy.kind}/{self.key_type}/{final_part(self.strategy)}"
        return sha256(declared.encode()).hexdigest()

    def by(self, *columns: str, scatter: bool = False) -> "ShardKey":
        """Return what a mapped class says as ``__shard__``: these columns hold the key.

        Args:
            columns: Their names in the table, one for each part of the key.
            scatter: Whether reads that name no key may go to all shards without being told to.

        Raises:
            ValueError: The key has more parts, or fewer.
        """
        if len({*columns}) != len(self.key_types) or len(columns) != len(self.key_types):
            raise ValueError(
                f"keys of group {self.name!r} are {self.key_type}; name a column for each"
            )
        key = ShardKey(self, columns, scatter=scatter)
        self._keys.append(key)
        return key

    def checked_key(self, key: object) -> Key:
        """Return ``key`` if it is exactly of the group's type.

        Nothing is converted: the server might compare ``"5"`` or ``5.0`` with a number and find
        rows, while the hash of the text or the fraction points elsewhere.

        Raises:
            ShardKeyError: It is of another type, or no ``bigint`` can hold it.
        """
        types = self.key_types
        if len(types) == 1:
            return checked_part(self.name, key, PYTHON_TYPES[types[0]])
        if not isinstance(key, tuple) or len(key) != _PARTS:
            raise ShardKeyError(
                self.name, f"{key!r} has not two parts; pass both ({self.key_type}), as a tuple"
            )
        return self.checked_part(key[0], 0), self.checked_part(key[1], 1)

    def checked_part(self, value: object, part: int) -> KeyPart:
        """Return ``value`` if it is exactly of the type of that part of the group's keys.

        Raises:
            ShardKeyError: As for `checked_key`.
        """
        return checked_part(self.name, value, PYTHON_TYPES[self.key_types[part]])

    def parsed_key(self, *written: str) -> Key:
        """Return the key that a person wrote as text, a text for each of its parts.

        Raises:
            ShardKeyError: It is no key of this group.
        """
        types = self.key_types
        if len(written) == 1 < len(types):
            written = tuple(written_parts(written[0])) or written
        if len(written) != len(types):
            raise ShardKeyError(
                self.name, f"{len(written)} values where a key has {len(types)} ({self.key_type})"
            )
        parts = [
            parsed_part(self.name, value, type_)
            for value, type_ in zip(written, types, strict=True)
        ]
        return parts[0] if len(parts) == 1 else (parts[0], parts[1])

    def stored_key(self, key: object, *columns: Column[Any]) -> Key:
        """Return ``key`` if ``columns`` keep it as it is.

        Raises:
            ShardKeyError: As for `checked_key`, or it is too long: PostgreSQL would cut off blanks.
        """
        found = self.checked_key(key)
        if isinstance(found, tuple):
            for part, column in zip(found, columns, strict=True):
                self._check_length(part, column)
        else:
            self._check_length(found, columns[0])
        return found

    def _check_length(self, part: KeyPart, column: Column[Any]) -> None:
        if not isinstance(part, str):
            return
        length = getattr(column.type, "length", None)
        if length is not None and len(part) > length:
            raise ShardKeyError(self.name, f"{part!r} is longer than {column.name} can be")

    def key_from(self, keywords: Mapping[str, Any]) -> Key:
        """Return the key that a caller wrote by its columns, as in ``household_id=42``.

        Raises:
            ShardKeyError: The value is no key of this group.
            TypeError: Not a whole key was given, or no table has these columns as its key.
        """
        if len(keywords) != len(self.key_types):
            such = f"{self.name}_id=42" if len(self.key_types) == 1 else "region='eu', tenant_id=42"
            raise TypeError(f"name one shard key of {self.name!r}, such as {such}")
        for key in self._keys:
            if keywords.keys() == {*key.columns}:
                return self.checked_key(key.value_in(keywords))
        declared = sorted({", ".join(key.columns) for key in self._keys})
        named = ", ".join(keywords)
        raise TypeError(f"{named} is no shard key of {self.name!r}; those are {declared}")

    def predicate(
        self,
        column: KeyColumns,
        bucket: int,
        *,
        strategy: ShardingStrategy,
        schema: str = DEFAULT_SCHEMA,
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``.

        Args:
            column: The shard key's; or both, as `ShardKey.of` returns them.
            bucket: Which.
            strategy: That of the map, which knows what has changed since the declaration.
            schema: Where the library's functions live.
        """
        return strategy.predicate(self._as_key(column), bucket, schema=schema)

    def bucket_of(
        self,
        column: KeyColumns,
        *,
        strategy: ShardingStrategy,
        schema: str = DEFAULT_SCHEMA,
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key.

        Args:
            column: The shard key's; or both, as `ShardKey.of` returns them.
            strategy: That of the map, which knows what has changed since the declaration.
            schema: Where the library's functions live.
        """
        return strategy.bucket_of(self._as_key(column), schema=schema)

    def _as_key(self, column: KeyColumns) -> KeyColumns:
        # Bounds and listed keys may not fit into a column of fewer bits, with whose type they would
        # be sent.
        if isinstance(self.key, tuple):
            assert isinstance(column, tuple)
            first, second = zip(column, self.key, strict=True)
            return type_coerce(*first), type_coerce(*second)
        assert not isinstance(column, tuple)
        return type_coerce(column, self.key)

    def tables(self) -> "dict[Table, ShardKey]":
        """Return the tables of all classes mapped so far, with their shard keys.

        Raises:
            ShardedTableError: One of them cannot be sharded as it is declared.
        """
        return {table: key for key in self._keys for table in key.tables()}

    def mappers(self) -> "dict[Mapper[Any], ShardKey]":
        """Return the mappers of all classes mapped so far, with their shard keys."""
        return {mapper: key for key in self._keys for mapper in key.mappers()}


@dataclass(frozen=True, slots=True, eq=False)
class ShardKey:
    """Which columns of a table decide where its rows lie: one, or for `Composite` two.

    Attributes:
        group: The tables that it moves with.
        columns: The columns' names, in the order of the key's parts.
        scatter: Whether reads without a key may go to all shards without being told to.
    """

    group: EntityGroup
    columns: tuple[str, ...]
    scatter: bool = False
    _owners: "list[weakref.ref[type]]" = field(default_factory=list, init=False, repr=False)

    @property
    def column(self) -> str:
        """Return the name of the only column.

        Raises:
            ShardKeyError: There are two, and whoever asks cannot do with that.
        """
        if len(self.columns) > 1:
            raise ShardKeyError(
                self.group.name,
                f"it is two columns ({self.named}), and this goes with one only; use a group"
                " whose key is one column",
            )
        return self.columns[0]

    @property
    def is_composite(self) -> bool:
        """Return whether the key is two columns."""
        return len(self.columns) > 1

    @property
    def named(self) -> str:
        """Return the names of the columns in a line."""
        return ", ".join(self.columns)

    def of(self, columns: "ReadOnlyColumnCollection[str, Any]") -> KeyColumns:
        """Return the key's columns among those of a table, or of an alias of it."""
        if len(self.columns) == 1:
            column: ColumnElement[Any] = columns[self.columns[0]]
            return column
        return columns[self.columns[0]], columns[self.columns[1]]

    def value_in(self, values: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- as it was given
        """Return the key of a row whose values are known by columns."""
        if len(self.columns) == 1:
            return values[self.columns[0]]
        return tuple(values[name] for name in self.columns)

    def __set_name__(self, owner: type, name: str) -> None:
        # The class that declares it is remembered, because a Table in a statement does not lead
        # back to its class.
        self._owners.append(weakref.ref(owner))

    def mappers(self) -> "list[Mapper[Any]]":
        """Return the mappers of the classes that declare this key, or inherit it."""
        return list(dict.fromkeys(m for owner in self._owners for m in mappers_of(owner())))

    def tables(self) -> list[Table]:
        """Return the tables of the mapped classes that declare this key, or inherit it.

        Raises:
            ShardedTableError: One of them cannot be sharded so.
        """
        found = [mapper.local_table for mapper in self.mappers()]
        tables = list(dict.fromkeys(table for table in found if isinstance(table, Table)))
        for table in tables:
            self.checked_columns(table)
        return tables

    def checked_columns(self, table: Table) -> tuple[Column[Any], ...]:
        """Return the key's columns in ``table``.

        Raises:
            ShardedTableError: One is missing, of a wrong type, or not in the primary key.
        """
        return tuple(
            self._checked_column(table, name, expected)
            for name, expected in zip(self.columns, self.group.key_types, strict=True)
        )

    def _checked_column(self, table: Table, name: str, expected: KeyTypeName) -> Column[Any]:
        column = table.columns.get(name)
        if column is None:
            raise ShardedTableError(table.name, f"it has no column {name!r}")
        if type(column.type) not in COLUMN_TYPES[expected] or not is_plain_key_type(column.type):
            raise ShardedTableError(
                table.name,
                f"{name} is {type(column.type).__name__}, group {self.group.name!r} has"
                f" {expected} keys; use a plain type that goes with it",
            )
        if isinstance(column.type, Uuid) and not column.type.as_uuid:
            raise ShardedTableError(table.name, f"{name} needs as_uuid=True")
        if not table.primary_key.contains_column(column):
            raise ShardedTableError(
                table.name,
                f"its primary key must include {name}, or two shards could hold one key",
            )
        return column


def mappers_of(owner: type | None) -> "Iterator[Mapper[Any]]":
    """Yield the mapper of a class that declares ``__shard__``, and those that inherit it.

    A class that is not mapped is a mixin or a base: those below it carry the declaration.
    """
    if owner is None:
        return
    mapper: Mapper[Any] | None = inspect(owner, raiseerr=False)
    if mapper is not None:
        yield mapper
    below: list[type] = owner.__subclasses__()
    for derived in below:
        if "__shard__" not in derived.__dict__:
            yield from mappers_of(derived)
