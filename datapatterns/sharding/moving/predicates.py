"""Conditions on the bucket of a row, as SQL that triggers and COPY can hold."""

from typing import Any

from psycopg import sql
from sqlalchemy import ClauseElement, column, table, type_coerce
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from datapatterns.sharding.definition import ShardKey
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.strategies import Directory

# A paramstyle that leaves % alone, and no backslash that would be doubled: the text becomes part of
# a trigger or a COPY, which take no parameters.
_DIALECT = PGDialect_psycopg(paramstyle="named")  # type: ignore[no-untyped-call]  # takes any option
_DIALECT._backslash_escapes = False  # noqa: SLF001 -- as it is set when a server is asked


def bucket_predicate(
    shard_key: ShardKey, shard_map: ShardMap, bucket: int, *, row: str, schema: str
) -> sql.Composable:
    """Return the condition that a row lies in ``bucket``, as of the map, with its values in it.

    Args:
        shard_key: Which column holds the key.
        shard_map: Whose strategy says it; that may be another tomorrow.
        bucket: Which bucket.
        row: The alias of the row's table, or ``new`` or ``old`` in a trigger.
        schema: Where the library's functions live.
    """
    key = table(row, column(shard_key.column)).c[shard_key.column]
    strategy = shard_map.strategy
    as_key = type_coerce(key, shard_key.group.key)
    return written(strategy.predicate(as_key, bucket, schema=schema))


def bucket_expression(shard_key: ShardKey, shard_map: ShardMap, *, schema: str) -> sql.Composable:
    """Return the bucket of a row as an index can hold it: before pins and other exceptions."""
    strategy = shard_map.strategy
    plain = strategy.default if isinstance(strategy, Directory) else strategy
    as_key = type_coerce(column(shard_key.column), shard_key.group.key)
    return written(plain.bucket_of(as_key, schema=schema))


def written(construct: ClauseElement) -> sql.Composable:
    """Return ``construct`` as SQL with its values written into it."""
    options: dict[str, Any] = {"literal_binds": True}
    return sql.SQL(str(construct.compile(dialect=_DIALECT, compile_kwargs=options)))
