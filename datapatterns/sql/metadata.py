"""The library's tables live in one schema; its name is the application's choice."""

import re
from collections.abc import Callable, Hashable
from functools import wraps
from threading import RLock
from typing import Final, TypeVar

from sqlalchemy import MetaData
from sqlalchemy.dialects.postgresql.base import RESERVED_WORDS

from datapatterns.errors import SchemaNameError

DEFAULT_SCHEMA = "datapatterns"
"""Where the library's tables live unless the application says otherwise."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_declaring: Final = RLock()

_WORDS_OF_SQL = RESERVED_WORDS | {"collation", "concurrently", "lateral", "tablesample"}
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Constraint names that code may rely on."""


def checked_schema(name: str) -> str:
    """Return ``name`` if the library's tables can live in a schema of that name.

    The name becomes part of functions, advisory locks and settings, so it is kept to what
    PostgreSQL never has to quote.

    Raises:
        SchemaNameError: It is not 1 to 40 characters of a-z, 0-9 and _, or a word of SQL.
    """
    if not _SCHEMA_NAME.fullmatch(name) or name.startswith("pg_") or name in _WORDS_OF_SQL:
        raise SchemaNameError(name)
    return name


def declared_once(declare: Callable[[K], T]) -> Callable[[K], T]:
    """Return ``declare`` with a memory, and with one thread at a time in it.

    `functools.cache` lets two threads that come first declare the same table: the second is
    refused by the MetaData, or, where each has its own, a query joins the table with its double.
    """
    found: dict[K, T] = {}

    @wraps(declare)
    def once(key: K, /) -> T:
        if (declared := found.get(key)) is not None:
            return declared
        with _declaring:
            if key not in found:
                found[key] = declare(key)
            return found[key]

    return once


@declared_once
def library_metadata(schema: str, /) -> MetaData:
    """Return the one MetaData of the library's tables in ``schema``."""
    return MetaData(schema=checked_schema(schema), naming_convention=NAMING_CONVENTION)
