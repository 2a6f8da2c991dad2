"""Find the shard key of a table that a statement names."""

from collections.abc import Sequence
from threading import Lock
from weakref import WeakKeyDictionary

from sqlalchemy import FromClause, Table

from datapatterns.errors import ShardedTableError
from datapatterns.sharding.broadcasting.definition import (
    Broadcast,
    broadcast_tables_of,
    checked_broadcast,
    mapped_broadcast_tables,
)
from datapatterns.sharding.definition import INFO_KEY, EntityGroup, ShardKey


class Placements:
    """What an application has declared about its tables, in the groups of one cluster."""

    def __init__(self, groups: Sequence[EntityGroup]) -> None:
        self._groups = tuple(groups)
        self._known: WeakKeyDictionary[Table, ShardKey | Broadcast] = WeakKeyDictionary()
        self._lock = Lock()

    def shard_key(self, table: FromClause) -> ShardKey | None:
        """Return the shard key of ``table``, or None if none was declared.

        Raises:
            ShardedTableError: It was declared in a way that cannot work.
        """
        found = self._placement(table)
        return found if isinstance(found, ShardKey) else None

    def tables_of(self, group: EntityGroup) -> list[Table]:
        """Return the tables of a group, also those beside them that no class is mapped to."""
        beside = dict.fromkeys(table.metadata for table in self.tables())
        found = (table for metadata in beside for table in metadata.sorted_tables)
        return [t for t in found if (key := self.shard_key(t)) is not None and key.group is group]

    def is_broadcast(self, table: FromClause) -> bool:
        """Return whether every shard holds all rows of ``table``.

        Raises:
            ShardedTableError: It was declared in a way that cannot work.
        """
        return isinstance(self._placement(table), Broadcast)

    def broadcast_tables(self) -> list[Table]:
        """Return the broadcast tables beside the sharded ones, those first that others refer to."""
        return broadcast_tables_of(dict.fromkeys(table.metadata for table in self.tables()))

    @property
    def groups(self) -> tuple[EntityGroup, ...]:
        """Return the groups of the cluster."""
        return self._groups

    def tables(self) -> dict[Table, ShardKey]:
        """Return the tables of all classes mapped so far."""
        return {
            table: shard_key
            for group in self._groups
            for table, shard_key in group.tables().items()
        }

    def _placement(self, table: FromClause) -> ShardKey | Broadcast | None:
        if not isinstance(table, Table):
            return None
        found = self._known.get(table)
        if found is None:
            with self._lock:
                # A class may have been mapped since; and a table may carry its key itself.
                self._known.update(self.tables())
                self._known.update(mapped_broadcast_tables())
                declared = table.info.get(INFO_KEY)
                if isinstance(declared, ShardKey):
                    self._check(table, declared)
                    self._known[table] = declared
                elif isinstance(declared, Broadcast):
                    self._known[checked_broadcast(table)] = declared
                found = self._known.get(table)
        return found

    def _check(self, table: Table, shard_key: ShardKey) -> None:
        shard_key.checked_columns(table)
        if shard_key.group not in self._groups:
            raise ShardedTableError(
                table.name, f"this cluster has no group {shard_key.group.name!r}; pass it in groups"
            )
