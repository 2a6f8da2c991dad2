"""What an application declares: groups of tables that share a shard key."""

import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    Unicode,
    UnicodeText,
    Uuid,
    inspect,
    type_coerce,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapper
from sqlalchemy.types import BIGINT, INTEGER, SMALLINT, TEXT, VARCHAR, NullType, TypeEngine
from sqlalchemy.types import UUID as SQL_UUID

from datapatterns.errors import ShardedTableError, ShardKeyError
from datapatterns.sharding.strategies import (
    Directory,
    Hash,
    Key,
    ListMap,
    Modulo,
    Range,
    ShardingStrategy,
)
from datapatterns.sharding.strategies.stored import final_part, range_of
from datapatterns.sql.metadata import DEFAULT_SCHEMA

KeyTypeName: TypeAlias = Literal["bigint", "text", "uuid"]

_PYTHON_TYPES: dict[KeyTypeName, type[Key]] = {"bigint": int, "text": str, "uuid": UUID}
# Exactly these classes: a subclass may compare otherwise (citext) or change values on their way.
_COLUMN_TYPES: dict[KeyTypeName, frozenset[type[TypeEngine[Any]]]] = {
    "bigint": frozenset((SmallInteger, Integer, BigInteger, SMALLINT, INTEGER, BIGINT)),
    "text": frozenset((String, Text, Unicode, UnicodeText, VARCHAR, TEXT)),
    "uuid": frozenset((Uuid, SQL_UUID, postgresql.UUID)),
}
_PLAIN_TYPES = frozenset[type[TypeEngine[Any]]]((NullType,)).union(*_COLUMN_TYPES.values())
_GROUP_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

INFO_KEY = "shard"
"""Where a `Table` that no class is mapped to carries its `ShardKey`: in ``Table.info``."""


def is_plain_key_type(type_: TypeEngine[Any]) -> bool:
    """Return whether parameters of ``type_`` reach the server as keys, and compare as those do.

    Others may send another value, or have the server compare as citext or fractions compare.
    """
    sent = type_._variant_mapping.get("postgresql", type_)  # noqa: SLF001 -- there is no public name
    return type(sent) in _PLAIN_TYPES


@dataclass(frozen=True, slots=True)
class EntityGroup:
    """Tables whose rows live together, by one shard key: a tenant, a household, a customer.

    All rows of a key are on one shard, so within a key joins, foreign keys and transactions are
    those of one database.

    Attributes:
        name: What the stored map is found by.
        strategy: Which bucket holds a key when the map is created. From then on the map knows, in
            which ranges are split and merged, keys are listed, assigned and pinned.
        key: The SQL type of the key: `BigInteger`, `Text` or `Uuid`.
    """

    name: str
    strategy: ShardingStrategy = field(default_factory=Hash)
    key: type[BigInteger | Text | Uuid[UUID]] = BigInteger
    _keys: "list[ShardKey]" = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not _GROUP_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot name a group; use a-z, 0-9 and _")
        if self.key not in (BigInteger, Text, Uuid):
            raise ValueError("a shard key is BigInteger, Text or Uuid")
        self._check_strategy()

    def _check_strategy(self) -> None:
        name = type(self.strategy).__name__
        if not isinstance(self.strategy, Hash | Modulo | Range | ListMap | Directory):
            raise ValueError(  # noqa: TRY004 -- as the other refusals
                f"rows of one key column cannot be placed by {name}; use Hash, Range, ListMap,"
                " Directory or Modulo"
            )
        if isinstance(self.strategy, Directory) and isinstance(
            self.strategy.default, ListMap | Directory
        ):
            raise ValueError(  # noqa: TRY004 -- as the other refusals
                "a directory over a list or another directory would be two lists of keys; put all"
                " of them into one"
            )
        ranges = range_of(self.strategy)
        if ranges is not None and "" in ranges.bounds:
            raise ValueError("nothing lies below the empty text; let it be no bound")
        placed = self.strategy.key_type
        if placed is not None and placed is not _PYTHON_TYPES[self.key_type]:
            raise ValueError(
                f"{name} places keys of {placed.__name__}, group {self.name!r} has {self.key_type}"
                " keys; let both agree"
            )

    @property
    def key_type(self) -> KeyTypeName:
        """Return the key's type by its name in PostgreSQL."""
        return "bigint" if self.key is BigInteger else "text" if self.key is Text else "uuid"

    @property
    def python_type(self) -> type[Key]:
        """Return the type of the keys in Python."""
        return _PYTHON_TYPES[self.key_type]

    @property
    def fingerprint(self) -> str:
        """Return what must stay the same for as long as there is data."""
        declared = f"{self.strategy.kind}/{self.key_type}/{final_part(self.strategy)}"
        return sha256(declared.encode()).hexdigest()

    def by(self, column: str, *, scatter: bool = False) -> "ShardKey":
        """Return what a mapped class says as ``__shard__``: this column holds the key.

        Args:
            column: Its name in the table.
            scatter: Whether reads that name no key may go to all shards without being told to.
        """
        key = ShardKey(self, column, scatter=scatter)
        self._keys.append(key)
        return key

    def checked_key(self, key: object) -> Key:
        """Return ``key`` if it is exactly of the group's type.

        Nothing is converted: the server might compare ``"5"`` or ``5.0`` with a number and find
        rows, while the hash of the text or the fraction points elsewhere.

        Raises:
            ShardKeyError: It is of another type, or no ``bigint`` can hold it.
        """
        expected = _PYTHON_TYPES[self.key_type]
        if not isinstance(key, expected) or isinstance(key, bool):
            raise ShardKeyError(
                self.name, f"{type(key).__name__} where {expected.__name__} is needed; convert it"
            )
        if isinstance(key, int) and not -(2**63) <= key < 2**63:
            raise ShardKeyError(self.name, f"{key} does not fit into a bigint")
        return key

    def parsed_key(self, written: str) -> Key:
        """Return the key that a person wrote as text.

        Raises:
            ShardKeyError: It is no key of this group.
        """
        try:
            found: Key = _PYTHON_TYPES[self.key_type](written)
        except ValueError as error:
            raise ShardKeyError(self.name, f"{written!r} is no {self.key_type}") from error
        return self.checked_key(found)

    def stored_key(self, key: object, column: Column[Any]) -> Key:
        """Return ``key`` if ``column`` keeps it as it is.

        Raises:
            ShardKeyError: As for `checked_key`, or it is too long: PostgreSQL would cut off blanks.
        """
        found = self.checked_key(key)
        length = getattr(column.type, "length", None)
        if isinstance(found, str) and length is not None and len(found) > length:
            raise ShardKeyError(self.name, f"{found!r} is longer than {column.name} can be")
        return found

    def key_from(self, keywords: Mapping[str, Key]) -> Key:
        """Return the key that a caller wrote by its column, as in ``household_id=42``.

        Raises:
            ShardKeyError: The value is no key of this group.
            TypeError: Not exactly one was given, or no table has that column as its key.
        """
        if len(keywords) != 1:
            raise TypeError(f"name one shard key of {self.name!r}, such as {self.name}_id=42")
        ((name, key),) = keywords.items()
        declared = sorted({shard_key.column for shard_key in self._keys})
        if name not in declared:
            raise TypeError(f"{name} is no shard key of {self.name!r}; those are {declared}")
        return self.checked_key(key)

    def predicate(
        self,
        column: ColumnElement[Any],
        bucket: int,
        *,
        strategy: ShardingStrategy,
        schema: str = DEFAULT_SCHEMA,
    ) -> ColumnElement[bool]:
        """Return the SQL condition that a row with this shard key lies in ``bucket``.

        Args:
            column: The shard key's.
            bucket: Which.
            strategy: That of the map, which knows what has changed since the declaration.
            schema: Where the library's functions live.
        """
        return strategy.predicate(self._as_key(column), bucket, schema=schema)

    def bucket_of(
        self,
        column: ColumnElement[Any],
        *,
        strategy: ShardingStrategy,
        schema: str = DEFAULT_SCHEMA,
    ) -> ColumnElement[int]:
        """Return the SQL expression for the bucket of a row with this shard key.

        Args:
            column: The shard key's.
            strategy: That of the map, which knows what has changed since the declaration.
            schema: Where the library's functions live.
        """
        return strategy.bucket_of(self._as_key(column), schema=schema)

    def _as_key(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        # Bounds and listed keys may not fit into a column of fewer bits, with whose type they would
        # be sent.
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
    """Which column of a table decides where its rows lie.

    Attributes:
        group: The tables that it moves with.
        column: The column's name.
        scatter: Whether reads without a key may go to all shards without being told to.
    """

    group: EntityGroup
    column: str
    scatter: bool = False
    _owners: "list[weakref.ref[type]]" = field(default_factory=list, init=False, repr=False)

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
            self.checked_column(table)
        return tables

    def checked_column(self, table: Table) -> Column[Any]:
        """Return the key's column in ``table``.

        Raises:
            ShardedTableError: The column is missing, of a wrong type, or not in the primary key.
        """
        column = table.columns.get(self.column)
        if column is None:
            raise ShardedTableError(table.name, f"it has no column {self.column!r}")
        expected = self.group.key_type
        if type(column.type) not in _COLUMN_TYPES[expected] or not is_plain_key_type(column.type):
            raise ShardedTableError(
                table.name,
                f"{self.column} is {type(column.type).__name__}, group {self.group.name!r} has"
                f" {expected} keys; use a plain type that goes with it",
            )
        if isinstance(column.type, Uuid) and not column.type.as_uuid:
            raise ShardedTableError(table.name, f"{self.column} needs as_uuid=True")
        if not table.primary_key.contains_column(column):
            raise ShardedTableError(
                table.name,
                f"its primary key must include {self.column}, or two shards could hold one key",
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
