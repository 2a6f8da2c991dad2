"""INSERT, UPDATE and DELETE of a session over shards."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Delete, Insert, Result, Update
from sqlalchemy.orm import ORMExecuteState

from datapatterns.errors import (
    MultiShardWriteError,
    ScatterRefusedError,
    UnmergeableQueryError,
    UnroutableStatementError,
)
from datapatterns.sharding.broadcasting.statements import broadcast_target
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.reaching.options import Asked, asked_for
from datapatterns.sharding.routing.footprint import Footprint, leaf_of
from datapatterns.sharding.routing.write_keys import (
    changed_rows,
    insert_keys,
    keys_of_rows,
    updates_by_primary_key,
)
from datapatterns.sharding.seeing.timing import timed
from datapatterns.sharding.sessions.broadcast_writing import BroadcastWriting
from datapatterns.sharding.sessions.by_index import ByIndex
from datapatterns.sharding.sessions.shard_work import ShardWork
from datapatterns.sharding.sessions.split_writing import SplitWriting
from datapatterns.sharding.sessions.statements import all_sets
from datapatterns.sharding.sessions.whole_shards import WholeShards
from datapatterns.sharding.strategies.strategy import Key


@dataclass(frozen=True, slots=True)
class Writing:
    """Writes for a session.

    Attributes:
        work: The session's transaction.
        broadcasting: Writes tables that every shard holds.
        splitting: Writes to several shards, which an atomic session may.
    """

    work: ShardWork
    broadcasting: BroadcastWriting
    splitting: SplitWriting

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
        buckets = shard_map.buckets_of(keys)
        asked = asked_for(state.execution_options, scatter=False)
        if asked.one is not None and (others := shard_map.shards_of(buckets) - {asked.one}):
            raise UnroutableStatementError(
                f"rows that belong to {', '.join(sorted(others))} are not inserted on {asked.one}",
                "leave out the option: the key tells the shard",
            )
        if self._splits(shard_map, buckets):
            with timed(access.load, shard_map, buckets, {*keys}, writes=True):
                return self.splitting.rows(state, statement, shard_map, keys)
        return self._write(state, shard_map, buckets, {*keys})

    def change(
        self, state: ORMExecuteState, statement: Update | Delete, *, by_index: bool = False
    ) -> Result[Any]:
        """Change rows on the shard of their keys.

        Args:
            state: What SQLAlchemy is about to execute.
            statement: That.
            by_index: Whether an index has found the rows, of which the statement lists the keys.

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
        asked = asked_for(state.execution_options, scatter=False)
        if asked.one is not None:
            return WholeShards(self.work).change(
                state, statement, footprint, shards=[asked.one], policy=asked.policy
            )
        if keys is not None:
            buckets = shard_map.buckets_with(keys)
        else:
            each = [footprint.buckets(row, shard_map.strategy) for row in sets or ({},)]
            known = [buckets for buckets in each if buckets is not None]
            if len(known) < len(each):
                return self._change_anywhere(state, statement, footprint, asked, by_index=by_index)
            buckets = frozenset[int]().union(*known)
        if not self._splits(shard_map, buckets):
            return self._write(state, shard_map, buckets, keys or ())
        with timed(access.load, shard_map, buckets, keys or (), writes=True):
            if isinstance(state.parameters, list):
                of_rows = self._keys_of_sets(state, statement, footprint)
                return self.splitting.rows(state, statement, shard_map, of_rows)
            return self.splitting.changes(state, statement, shard_map, footprint, buckets, keys)

    def _change_anywhere(
        self,
        state: ORMExecuteState,
        statement: Update | Delete,
        footprint: Footprint,
        asked: Asked,
        *,
        by_index: bool,
    ) -> Result[Any]:
        """Change rows of which nobody says the keys."""
        if asked.explicit:
            shards = sorted(frozenset(self.work.access.router.map_of(footprint.group).owners))
            return WholeShards(self.work).change(
                state, statement, footprint, shards=shards, policy=asked.policy
            )
        if not by_index:
            again = partial(self.change, state, by_index=True)
            found = ByIndex(self.work).change(state, statement, all_sets(state), again)
            if found is not None:
                return found
        raise ScatterRefusedError(footprint.tables)

    def _splits(self, shard_map: ShardMap, buckets: frozenset[int]) -> bool:
        return self.work.atomic and len(shard_map.shards_of(buckets)) > 1

    def _keys_of_sets(
        self, state: ORMExecuteState, statement: Update | Delete, footprint: Footprint
    ) -> list[Key]:
        placements, sets = self.work.access.placements, all_sets(state)
        if updates_by_primary_key(state):
            return keys_of_rows(statement, sets, placements, state.bind_mapper)
        each = [footprint.keys(row) for row in sets]
        if not footprint.plain or any(keys is None or len(keys) != 1 for keys in each):
            raise UnmergeableQueryError(
                "sets of parameters that are not each for one key", "pass a set for each key"
            )
        return [key for keys in each for key in keys or ()]

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
