"""The part of a cluster that gives rows other shard keys."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Table

from datapatterns.sharding.atomic import AtomicWork
from datapatterns.sharding.rekeying.row_moving import RowMove
from datapatterns.sharding.strategies.strategy import Key


class RekeyingCluster:
    """What a `ShardCluster` does to rows that belong to another key."""

    def atomically(self, *, lock_seconds: float = 5.0) -> AbstractContextManager[AtomicWork]:
        """Open a transaction over several shards."""
        raise NotImplementedError

    def move_row(
        self,
        table: type | Table,
        key: Mapping[str, Any],
        *,
        with_children: bool = False,
        lock_seconds: float = 5.0,
        **new_key: Key,
    ) -> RowMove:
        """Give a row another shard key, and move it to that key's shard, in one transaction.

        As in ``move_row(Basket, {"household_id": 5, "id": 1}, household_id=7)``. All columns stay
        as they are but for the key, also those that a server has computed.

        Args:
            table: A mapped class, or a table.
            key: The row's primary key, by columns.
            with_children: Whether rows that refer to it by foreign keys move along.
            lock_seconds: How long to wait for others that write it.
            new_key: The shard key that it gets, by its column.

        Raises:
            IntegrityError: Another row is in the way there, or what the row refers to is missing.
            ParentInUseError: Rows of other shards refer to it.
            RowHasDependantsError: Others refer to it, and are not to move along.
            RowMissingError: There is no such row.
            ShardUnavailableError: A shard does not answer; nothing was moved.
            StaleShardMapError: A bucket has moved; repeat it.
        """
        with self.atomically(lock_seconds=lock_seconds) as work:
            return work.move_row(table, key, with_children=with_children, **new_key)
