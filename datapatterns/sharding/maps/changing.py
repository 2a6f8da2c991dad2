"""Change a map while it is in use, step by step; whoever comes next finishes what was left.

One change at a time for each group, and each in five transactions:

1. Control database: the change is written down, and its buckets may not move.
2. Shard: a new bucket is owned here as well; one that ends may be in a map or not.
3. Control database: the map has changed, in a new epoch. From here on it is in use.
4. Shard: who comes with the map before is refused, once nobody uses it any more.
5. Control database: the change is done.

Until the fourth, both maps are right: all keys in question are on one shard, where the one and the
other would look for them. So there is no moment in which a key has no bucket. Only what is settled
may move on to other shards, where the map before would not find it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import DBAPIError

from datapatterns.clock import Clock
from datapatterns.errors import MapChangeUnsettledError, ShardMapCorruptError
from datapatterns.failpoints import failpoint
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.engines import tables_needed
from datapatterns.sharding.maps.applying import (
    PendingChange,
    apply_change,
    forget_change,
    read_change,
    record_change,
    refuse_moving,
)
from datapatterns.sharding.maps.loading import load_maps
from datapatterns.sharding.maps.map_change import Decision, MapChange
from datapatterns.sharding.maps.settling import prepare, settle
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.transactions import fresh_reads, looking, resuming

_ATTEMPTED = "a change of the shard map"
SETTLE_SECONDS = 30.0
"""How long a change waits for transactions that began with the map before."""

_LOCK_MS = 300
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class MapChanging:
    """Changes maps.

    Attributes:
        control: The control database.
        access: The way to the shards.
        clock: What time it is.
        settle_seconds: How long to wait for transactions that began with the map before.
    """

    control: Engine
    access: ShardAccess
    clock: Clock
    settle_seconds: float

    def run(self, group: EntityGroup, decide: Decision, *, dry_run: bool) -> MapChange:
        """Change the map; finish before what somebody else has begun.

        Raises:
            CommitUnansweredError: A connection broke during a COMMIT; do it again.
            MapChangeRefusedError: The map cannot be changed so.
            MapChangeUnsettledError: The change is in use, and old transactions still run.
            ShardUnavailableError: The shard does not answer; do it again when it does.
        """
        if dry_run:
            with (
                tables_needed(self.access.schema),
                fresh_reads(self.control) as conn,
                looking(conn),
            ):
                shard_map = self._map(conn, group)
                change = decide(shard_map)
                refuse_moving(conn, shard_map, change, schema=self.access.schema)
                return change
        while True:
            self.finish(group)
            begun = self._begin(group, decide)
            if isinstance(begun, PendingChange):
                return self._finish(group, begun)
            if begun is not None:
                self.access.router.refresh()
                return begun

    def finish(self, group: EntityGroup) -> MapChange | None:
        """Finish the change that somebody has begun and not brought to its end; None if none is."""
        with self._control() as conn:
            left = read_change(conn, group, schema=self.access.schema)
        return None if left is None else self._finish(group, left)

    def _begin(self, group: EntityGroup, decide: Decision) -> PendingChange | MapChange | None:
        """Write a change down. None if another one is under way; a change if there is none."""
        schema = self.access.schema
        with self._control() as conn:
            if read_change(conn, group, schema=schema, alone=True) is not None:
                return None
            shard_map = self._map(conn, group)
            change = decide(shard_map)
            if not change.changed:
                return change
            refuse_moving(conn, shard_map, change, schema=schema, alone=True)
            begun = record_change(conn, shard_map, change, schema=schema)
        failpoint("map-change.begun")
        return begun

    def _finish(self, group: EntityGroup, pending: PendingChange) -> MapChange:
        change, schema = pending.change, self.access.schema
        if not pending.is_applied:
            if not self._on_shard(group, pending, prepare):
                return self._abandon(pending)
            failpoint("map-change.prepared")
            with self._control() as conn:
                change = replace(change, epoch=apply_change(conn, pending, schema=schema))
            failpoint("map-change.applied")
        # This process is not to wait for itself: from now on it uses the new map.
        self.access.router.refresh()
        self._on_shard(group, pending, settle)
        failpoint("map-change.settled")
        with self._control() as conn:
            forget_change(conn, pending, schema=schema)
        return change

    def _abandon(self, pending: PendingChange) -> MapChange:
        """Forget a change that its shard cannot have been told of.

        Raises:
            ShardMapCorruptError: Unless another process has brought it to its end meanwhile.
        """
        with self._control() as conn:
            is_left = forget_change(conn, pending, schema=self.access.schema, state="begun")
        if is_left:
            change = pending.change
            raise ShardMapCorruptError(
                change.group,
                f"shard {change.shard!r} does not own bucket {pending.busy_bucket}, which the map"
                " has there; was one of the databases restored?",
            )
        return pending.change

    def _on_shard(
        self, group: EntityGroup, pending: PendingChange, step: Callable[..., bool]
    ) -> bool:
        """Do one step on the shard as soon as nobody is in the way; let others pass meanwhile."""
        shard = pending.change.shard
        until = self.clock.monotonic() + self.settle_seconds
        while True:
            try:
                with (
                    self.access.asking(shard),
                    fresh_reads(self.access.engines[shard]) as conn,
                    resuming(conn, f"{_ATTEMPTED} on {shard}"),
                ):
                    conn.execute(select(func.set_config("lock_timeout", f"{_LOCK_MS}ms", True)))
                    done = step(conn, pending, schema=self.access.schema)
            except DBAPIError as error:
                if not isinstance(error.orig, LockNotAvailable):
                    raise
                if self.clock.monotonic() >= until:
                    raise MapChangeUnsettledError(
                        group.name, shard=shard, bucket=pending.busy_bucket
                    ) from error
                self.clock.sleep(_PAUSE_SECONDS)
            else:
                return done

    def _map(self, conn: Connection, group: EntityGroup) -> ShardMap:
        shards, schema = [*self.access.engines], self.access.schema
        return load_maps(conn, [group], shards=shards, schema=schema)[group.name]

    @contextmanager
    def _control(self) -> Iterator[Connection]:
        with (
            tables_needed(self.access.schema),
            fresh_reads(self.control) as conn,
            resuming(conn, _ATTEMPTED),
        ):
            yield conn
