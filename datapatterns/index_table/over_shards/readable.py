"""A shard refuses to read an index that is not whole; this is how it is asked.

In the statement of the look-up: its state and its entries are then of one snapshot, and nobody has
to be told of a change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, Text, literal, select
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import IndexChangedError, IndexMissingError, ShardIndexNotReadyError
from datapatterns.index_table.definition import fingerprint
from datapatterns.index_table.over_shards.sharded_index import ShardedIndex
from datapatterns.index_table.schema import index_tables
from datapatterns.sql.functions import library_function
from datapatterns.sql.metadata import declared_once

REFUSED: Final = "SD004"
"""The SQLSTATE of a shard on which nobody may read the index."""


@declared_once
def may_be_read(index: ShardedIndex) -> ColumnElement[bool]:
    """Return a condition that fails the statement unless the index is ready on its shard.

    Neither SELECT names a column of the statement's, so the server evaluates them once and first.
    """
    definition = index.definition
    known = index_tables(definition.schema).index_table.c
    name, digest = literal(definition.name, Text), literal(fingerprint(definition), Text)
    ready = select(known.index_id).where(
        known.name == name, known.state == literal("ready", Text), known.fingerprint == digest
    )
    refused = library_function(definition.schema, "refuse_index", name, digest, returns=Boolean())
    return select(refused).where(~ready.exists()).scalar_subquery().is_(None)


@contextmanager
def telling_state(index: ShardedIndex) -> Iterator[None]:
    """Say what it means that a shard has refused to read.

    Raises:
        IndexChangedError: It was built from another definition.
        IndexMissingError: It was never created there.
        ShardIndexNotReadyError: It is being built, has failed, or is being dropped.
    """
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != REFUSED:
            raise
        driver: Any = error.orig
        state = driver.diag.message_detail
        if state == "missing":
            raise IndexMissingError(index.name) from error
        if state == "changed":
            raise IndexChangedError(index.name) from error
        raise ShardIndexNotReadyError(index.name, state=state) from error
