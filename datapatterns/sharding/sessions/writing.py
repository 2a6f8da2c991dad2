"""INSERT, UPDATE and DELETE of a session over shards."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Delete, Insert, Result, Update
from sqlalchemy.orm import ORMExecuteState

from datapatterns.errors import MultiShardWriteError, ScatterRefusedError
from datapatterns.sharding.broadcasting.statements import broadcast_target
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.routing.footprint import leaf_of
from datapatterns.sharding.routing.write_keys import (
    changed_rows,
    insert_keys,
    updates_by_primary_key,
)
from datapatterns.sharding.seeing.timing import timed
from datapatterns.sharding.sessions.broadcast_writing import BroadcastWriting
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.statements import all_sets
from datapatterns.sharding.strategies.strategy import Key


@dataclass(frozen=True, slots=True)
class Writing:
    """Writes for a session.

    Attributes:
        work: The session's transaction.
        broadcasting: Writes tables that every shard holds.
    """

    work: ShardWork
    broadcasting: BroadcastWriting

    def insert(self, state: ORMExecuteState, statement: Insert) -> Result[Any]:
        """Insert rows on the shard of their keys.

        Raises:
            MultiShardWriteError: They belong to several.
            ShardKeyError: A row has no key.
        """
        access = self.work.access
        if (table := broadcast_target(statement, access.placements)) is not None:
            return self.broadcasting.insert(state, statement, table)
        leaf = leaf_of(statement.table, access.placements)
        keys = insert_keys(statement, all_sets(state), leaf, state.bind_mapper)
        shard_map = access.router.map_of(leaf.shard_key.group)
        return self._write(state, shard_map, shard_map.buckets_of(keys), {*keys})

    def change(self, state: ORMExecuteState, statement: Update | Delete) -> Result[Any]:
        """Change rows on the shard of their keys.

        Raises:
            MultiShardWriteError: They belong to several.
            ScatterRefusedError: It does not say which keys they have.
            ShardKeyChangedError: It changes a key.
        """
        access = self.work.access
        if (table := broadcast_target(statement, access.placements)) is not None:
            return self.broadcasting.change(state, statement, table)
        sets = all_sets(state)
        footprint, keys = changed_rows(
            statement,
            sets,
            access.placements,
            state.bind_mapper,
            by_primary_key=updates_by_primary_key(state),
        )
        shard_map = access.router.map_of(footprint.group)
        if keys is not None:
            return self._write(state, shard_map, shard_map.buckets_with(keys), keys)
        each = [footprint.buckets(row, shard_map.strategy) for row in sets or ({},)]
        known = [buckets for buckets in each if buckets is not None]
        if len(known) < len(each):
            raise ScatterRefusedError(footprint.tables)
        return self._write(state, shard_map, frozenset().union(*known), ())

    def _write(
        self,
        state: ORMExecuteState,
        shard_map: ShardMap,
        buckets: frozenset[int],
        keys: Collection[Key],
    ) -> Result[Any]:
        if len(shards := shard_map.shards_of(buckets)) > 1:
            raise MultiShardWriteError(shards)
        shard_id = self.work.shard_of(shard_map, buckets)
        if buckets:
            self.work.become_writer(shard_id)
            self.work.claim(shard_id, shard_map, buckets)
        with timed(self.work.access.load, shard_map, buckets, keys, writes=True):
            return self.work.run(state, state.statement, shard_id)
