"""Reads by an id alone: it says in which bucket its row began."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select
from sqlalchemy.sql.selectable import SelectBase

from datapatterns.errors import ShardKeyError, UnroutableStatementError
from datapatterns.sharding.ids.layout import parts_of_id
from datapatterns.sharding.maps.shard_map import ShardMap

OPTION = "carried_id"
"""The execution option: a column and an id that `ShardCluster.ids` has made."""


def with_id(statement: SelectBase, options: Mapping[str, Any]) -> SelectBase:
    """Return ``statement`` for the rows with the id that its options name, if they do.

    Raises:
        UnroutableStatementError: It is no single SELECT.
    """
    if OPTION not in options:
        return statement
    if not isinstance(statement, Select):
        raise UnroutableStatementError(
            f"{OPTION} goes with a single SELECT", "let each SELECT be a statement of its own"
        )
    column, row_id = options[OPTION]
    condition: ColumnElement[bool] = column == row_id
    return statement.where(condition)


def buckets_of_id(
    options: Mapping[str, Any], shard_map: ShardMap, buckets: frozenset[int] | None, group: str
) -> frozenset[int] | None:
    """Return where a statement finds its rows, if its options name an id, else ``buckets``.

    An id names the bucket in which it was made. What that became since is looked through as well:
    one bucket, unless it has been split, merged, or lost keys to pins.

    Raises:
        ShardKeyError: No bucket of the map made that id.
    """
    if OPTION not in options:
        return buckets
    _, row_id = options[OPTION]
    try:
        since = shard_map.buckets_since(parts_of_id(row_id).bucket)
    except ValueError as error:
        raise ShardKeyError(group, f"{row_id} is no id of this group: {error}") from error
    return since if buckets is None else buckets & since
