"""What types shard keys have, in Python, in models and in PostgreSQL."""

import json
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Integer,
    SmallInteger,
    String,
    Text,
    Unicode,
    UnicodeText,
    Uuid,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import BIGINT, INTEGER, SMALLINT, TEXT, VARCHAR, NullType, TypeEngine
from sqlalchemy.types import UUID as SQL_UUID

from datapatterns.errors import ShardKeyError
from datapatterns.sharding.strategies.strategy import Key, KeyPart

KeyTypeName: TypeAlias = Literal["bigint", "text", "uuid"]

SqlKeyType: TypeAlias = type[BigInteger | Text | Uuid[UUID]]

PYTHON_TYPES: dict[KeyTypeName, type[KeyPart]] = {"bigint": int, "text": str, "uuid": UUID}
SQL_TYPES: dict[KeyTypeName, SqlKeyType] = {"bigint": BigInteger, "text": Text, "uuid": Uuid}
# Exactly these classes: a subclass may compare otherwise (citext) or change values on their way.
COLUMN_TYPES: dict[KeyTypeName, frozenset[type[TypeEngine[Any]]]] = {
    "bigint": frozenset((SmallInteger, Integer, BigInteger, SMALLINT, INTEGER, BIGINT)),
    "text": frozenset((String, Text, Unicode, UnicodeText, VARCHAR, TEXT)),
    "uuid": frozenset((Uuid, SQL_UUID, postgresql.UUID)),
}
_PLAIN_TYPES = frozenset[type[TypeEngine[Any]]]((NullType,)).union(*COLUMN_TYPES.values())


def is_plain_key_type(type_: TypeEngine[Any]) -> bool:
    """Return whether parameters of ``type_`` reach the server as keys, and compare as those do.

    Others may send another value, or have the server compare as citext or fractions compare.
    """
    sent = type_._variant_mapping.get("postgresql", type_)  # noqa: SLF001 -- there is no public name
    return type(sent) in _PLAIN_TYPES


def key_type_name(type_: object) -> KeyTypeName:
    """Return what PostgreSQL calls the type of a key.

    Raises:
        ValueError: No key can have it.
    """
    for name, known in SQL_TYPES.items():
        if type_ is known:
            return name
    raise ValueError("a shard key is BigInteger, Text or Uuid, or a pair of them")


def checked_part(group: str, value: object, expected: type[KeyPart]) -> KeyPart:
    """Return ``value`` if it is exactly of the type that a group's keys have.

    Raises:
        ShardKeyError: It is of another type, or no ``bigint`` can hold it.
    """
    if not isinstance(value, expected) or isinstance(value, bool):
        raise ShardKeyError(
            group, f"{type(value).__name__} where {expected.__name__} is needed; convert it"
        )
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ShardKeyError(group, f"{value} does not fit into a bigint")
    return value


def parsed_part(group: str, written: str, type_: KeyTypeName) -> KeyPart:
    """Return what a person wrote as text.

    Raises:
        ShardKeyError: It is no key of that type.
    """
    expected = PYTHON_TYPES[type_]
    try:
        found: KeyPart = expected(written)
    except ValueError as error:
        raise ShardKeyError(group, f"{written!r} is no {type_}") from error
    return checked_part(group, found, expected)


def written_key(key: Key) -> str:
    """Return a key as text; of two columns, as a JSON list of both."""
    if isinstance(key, tuple):
        return json.dumps([str(part) for part in key], ensure_ascii=False)
    return str(key)


def written_parts(written: str) -> list[str]:
    """Return the parts of a key of two columns that `written_key` has written; none if it is not.

    >>> written_parts(written_key(("eu", 7)))
    ['eu', '7']
    """
    try:
        found = json.loads(written)
    except ValueError:
        return []
    return [*map(str, found)] if isinstance(found, list) else []
