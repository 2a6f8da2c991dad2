"""Conditions on the bucket of a row, as SQL that triggers and COPY can hold."""

from typing import Any

from psycopg import sql
from sqlalchemy import ClauseElement, column, table, type_coerce
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.key_types import SQL_TYPES
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.strategies import Composite, Directory, Hash

# A paramstyle that leaves % alone, and no backslash that would be doubled: the text becomes part of
# a trigger or a COPY, which take no parameters.
_DIALECT = PGDialect_psycopg(paramstyle="named")  # type: ignore[no-untyped-call]  # takes any option
_DIALECT._backslash_escapes = False  # noqa: SLF001 -- as it is set when a server is asked


def bucket_predicate(
    shard_key: ShardKey, shard_map: ShardMap, bucket: int, *, row: str, schema: str
) -> sql.Composable:
    """Return the condition that a row lies in ``bucket``, as of the map, with its values in it.

    Args:
        shard_key: Which columns hold the key.
        shard_map: Whose strategy says it; that may be another tomorrow.
        bucket: Which bucket.
        row: The alias of the row's table, or ``new`` or ``old`` in a trigger.
        schema: Where the library's functions live.
    """
    key = shard_key.of(table(row, *map(column, shard_key.columns)).c)
    strategy = shard_map.strategy
    return written(shard_key.group.predicate(key, bucket, strategy=strategy, schema=schema))


def indexed_expressions(
    shard_key: ShardKey, shard_map: ShardMap, *, schema: str
) -> list[sql.Composable]:
    """Return what an index that finds the rows of a bucket holds, before pins and exceptions.

    For each part of the key its hash, if it is placed by that, else its column.
    """
    strategy = shard_map.strategy
    plain = strategy.default if isinstance(strategy, Directory) else strategy
    parts = plain.parts if isinstance(plain, Composite) else (plain,)
    return [
        written(part.bucket_of(type_coerce(column(name), SQL_TYPES[type_]), schema=schema))
        if isinstance(part, Hash)
        else sql.Identifier(name)
        for part, name, type_ in zip(
            parts, shard_key.columns, shard_key.group.key_types, strict=True
        )
    ]


def written(construct: ClauseElement) -> sql.Composable:
    """Return ``construct`` as SQL with its values written into it."""
    options: dict[str, Any] = {"literal_binds": True}
    return sql.SQL(str(construct.compile(dialect=_DIALECT, compile_kwargs=options)))
