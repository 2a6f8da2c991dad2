"""What an application declares about a table that every shard holds a copy of."""

import weakref
from collections.abc import Iterable

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import Mapper

from datapatterns.errors import ShardedTableError
from datapatterns.sharding.definition import INFO_KEY, mappers_of

_DECLARED: "weakref.WeakSet[Broadcast]" = weakref.WeakSet()
"""All declarations of this process: a `Table` in a statement does not lead back to its class."""


class Broadcast:
    """Declares, as ``__shard__`` of a mapped class, that every shard holds all rows of its table.

    For what is small, rarely written and joined with everything: countries, currencies, prices. It
    is read where the rows are that it is joined with. It is written on all shards in one
    transaction, one writer at a time. A `Table` that no class is mapped to carries it in
    ``Table.info``, under ``"shard"``.
    """

    def __init__(self) -> None:
        self._owners: list[weakref.ref[type]] = []
        _DECLARED.add(self)

    def __set_name__(self, owner: type, name: str) -> None:
        self._owners.append(weakref.ref(owner))

    def __repr__(self) -> str:
        return "Broadcast()"

    def mappers(self) -> list[Mapper[object]]:
        """Return the mappers of the classes that declare it, or inherit it."""
        return list(dict.fromkeys(m for owner in self._owners for m in mappers_of(owner())))

    def tables(self) -> list[Table]:
        """Return the tables of the mapped classes that declare it, or inherit it.

        Raises:
            ShardedTableError: One of them has no primary key.
        """
        found = [table for mapper in self.mappers() for table in mapper.tables]
        return [
            checked_broadcast(table) for table in dict.fromkeys(found) if isinstance(table, Table)
        ]


def checked_broadcast(table: Table) -> Table:
    """Return ``table`` if copies of its rows can be told apart.

    Raises:
        ShardedTableError: It has no primary key.
    """
    if not table.primary_key.columns:
        raise ShardedTableError(
            table.name, "a broadcast table needs a primary key, by which copies are compared"
        )
    return table


def mapped_broadcast_tables() -> dict[Table, Broadcast]:
    """Return the broadcast tables of all classes mapped so far."""
    return {table: each for each in list(_DECLARED) for table in each.tables()}


def broadcast_tables_of(metadata: Iterable[MetaData]) -> list[Table]:
    """Return the broadcast tables of some collections of tables, those first that others refer to.

    A cluster's are those that are declared beside its sharded tables.
    """
    mapped = mapped_broadcast_tables()
    return [
        checked_broadcast(table)
        for each in metadata
        for table in each.sorted_tables
        if table in mapped or isinstance(table.info.get(INFO_KEY), Broadcast)
    ]
