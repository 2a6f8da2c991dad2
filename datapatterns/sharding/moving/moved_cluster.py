"""What a cluster can be told about moving its buckets."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

from sqlalchemy import Connection

from datapatterns.errors import SettingsError, ShardListChangedError
from datapatterns.sharding.broadcasting.copying import copied_to
from datapatterns.sharding.broadcasting.copying_cluster import CopyingCluster
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.moving import joining
from datapatterns.sharding.moving.forgetting import forget
from datapatterns.sharding.moving.move import Move, MoveProgress
from datapatterns.sharding.moving.mover import Mover
from datapatterns.sharding.moving.rebalancing import run_plan
from datapatterns.sharding.moving.resuming import ALL_STATES, FROM_THE_CUT_ON, resume
from datapatterns.sharding.moving.settings import MoveAccess, MoveSettings
from datapatterns.sharding.seeing.looking import Measure
from datapatterns.sharding.seeing.rebalance_plan import RebalancePlan
from datapatterns.sharding.seeing.seen_cluster import SeenCluster
from datapatterns.transactions import fresh_reads, resuming

Told = Callable[[MoveProgress], object]


def _untold(_: MoveProgress) -> None:
    """Nobody wants to know."""


class MovedCluster(SeenCluster, CopyingCluster):
    """The part of a `ShardCluster` that moves buckets from shard to shard, while all goes on."""

    @property
    @abstractmethod
    def _moving(self) -> MoveAccess: ...

    @abstractmethod
    def _unchecked(self, shard_id: str) -> AbstractContextManager[Connection]: ...

    # One bucket ----------------------------------------------------------------------------

    def move(  # noqa: PLR0913 -- settings, all by name
        self,
        group: EntityGroup,
        bucket: int,
        *,
        to: str,
        clean_after_seconds: float | None = None,
        bytes_per_second: float | None = None,
        lease_seconds: float = 60.0,
        progress: Told = _untold,
    ) -> Move:
        """Move one bucket with all its rows to another shard, while they are read and written.

        Writers of this bucket wait for a moment at the end, all others never. Should this process
        die, `resume_moves` goes on.

        Args:
            group: Whose bucket.
            bucket: Which one.
            to: The shard that gets it.
            clean_after_seconds: How long the source keeps the rows after that; by default twice as
                long as an old map is used for.
            bytes_per_second: How much to copy at most; by default as fast as it goes.
            lease_seconds: After how long others may take over from a worker that died.
            progress: Is told how far it is.

        Raises:
            MigrationBlockedError: A shard is being migrated; resume later.
            MoveBlockedError: A transaction held the tables, or the bucket, for too long.
            MoveMismatchError: The copy was not equal; nothing has changed.
            MoveRefusedError: The tables would not arrive whole; nothing has changed.
            ShardUnavailableError: A shard does not answer; resume later.
            ShardedTableError: A table cannot be moved; nothing has changed.
            StaleMoveError: The bucket is moving already, or is there already.
        """
        self._check_shard(to)
        shard_map = self._moving.newest_map(group)
        if bucket not in shard_map.buckets:
            raise SettingsError("bucket", f"there is no bucket {bucket} of group {group.name!r}")
        mover = self._mover(
            clean_after_seconds,
            bytes_per_second=bytes_per_second,
            lease_seconds=lease_seconds,
            progress=progress,
        )
        source = shard_map.owners[bucket]
        return mover.run(mover.plan(group, bucket, source=source, target=to))

    def moves(self, *, live: bool = True) -> list[Move]:
        """Return the moves that are not done, or all of them, the oldest first."""
        return self._mover(None).moves(live=live)

    def resume_moves(
        self, *, clean_after_seconds: float | None = None, progress: Told = _untold
    ) -> list[Move]:
        """Take up all moves that nobody works at; return them as they have ended.

        Any process may, at any time, and several at once.

        Raises:
            Exception: What `move` raises; of several, the first, when all have been tried.
        """
        mover = self._mover(clean_after_seconds, progress=progress)
        return resume(mover, wanted=ALL_STATES)

    def finish_moves(
        self, *, clean_after_seconds: float | None = None, progress: Told = _untold
    ) -> list[Move]:
        """Do as `resume_moves` does, with moves that were about to be handed over, or have been.

        Only there may a bucket be nobody's. Moves that died earlier harm no writer: they wait
        until somebody resumes them at the speed that suits the servers, or undoes them. For
        workers, see `datapatterns.runtime.ShardMoveLoop`.

        Raises:
            Exception: What `move` raises; of several, the first, when all have been tried.
        """
        mover = self._mover(clean_after_seconds, progress=progress)
        return resume(mover, wanted=FROM_THE_CUT_ON)

    def abort_move(self, group: EntityGroup, bucket: int) -> Move | None:
        """Undo the move of a bucket; return it as it has ended, None if there is none.

        One that is past its cut cannot be undone: it goes on to its end.

        Raises:
            MoveBusyError: A worker is at it; stop that one first.
        """
        mover = self._mover(None)
        for move in mover.moves(live=True):
            if (move.group, move.bucket) == (group.name, bucket):
                return mover.abort(move.move_id)
        return None

    def move_hints(self, group: EntityGroup) -> list[str]:
        """Return the statements that make the indexes that moves would like; run them per shard."""
        return self._mover(None).missing_indexes(group, min(self._moving.engines))

    # Many buckets --------------------------------------------------------------------------

    def rebalance(
        self,
        plan: RebalancePlan,
        *,
        max_parallel: int = 1,
        clean_after_seconds: float | None = None,
        bytes_per_second: float | None = None,
        progress: Told = _untold,
    ) -> list[Move]:
        """Carry a plan out, in rounds in which no shard takes part in two moves; return the moves.

        A bucket that has moved since the plan was made stays where it is. After an error, make a
        plan anew: it goes on where this one ended.

        Args:
            plan: From `plan`.
            max_parallel: At most so many moves at once.
            clean_after_seconds: As for `move`.
            bytes_per_second: At most so much for each move.
            progress: Is told how far each move is, by the thread that works at it.

        Raises:
            Exception: What `move` raises.
        """
        mover = self._mover(
            clean_after_seconds, bytes_per_second=bytes_per_second, progress=progress
        )
        return run_plan(mover, plan, at_once=max_parallel)

    def drain(
        self,
        shard: str,
        *,
        by: Measure = "rows",
        max_parallel: int = 1,
        clean_after_seconds: float | None = None,
        bytes_per_second: float | None = None,
        progress: Told = _untold,
    ) -> list[Move]:
        """Move all buckets off a shard, and let it get no new ones; return the moves.

        Repeating it goes on. `remove_shard` comes after it, `add_shard` takes it back.

        Raises:
            Exception: What `rebalance` raises.
            SettingsError: No other shard may get buckets.
        """
        self._check_shard(shard)
        self._mover(None).refuse_leaving(shard)
        with self._control_transaction(f"draining shard {shard}") as conn:
            joining.set_state(conn, shard, "draining", schema=self._moving.schema)
        moves: list[Move] = []
        for plan in self.drain_plans(shard, by=by):
            moves += self.rebalance(
                plan,
                max_parallel=max_parallel,
                clean_after_seconds=clean_after_seconds,
                bytes_per_second=bytes_per_second,
                progress=progress,
            )
        return moves

    def drain_plans(self, shard: str, *, by: Measure = "rows") -> list[RebalancePlan]:
        """Return what `drain` would do, a plan for each group; changes nothing."""
        self._check_shard(shard)
        self._moving.shards.router.refresh()
        return [self.plan(group, by=by, draining=[shard], max_moves=0) for group in self.groups]

    # Shards --------------------------------------------------------------------------------

    def add_shard(self, shard: str, *, weight: float = 1.0) -> None:
        """Take a server into the cluster, with all broadcast tables, index tables and no buckets.

        Configure it in all processes first, and bring its tables to where those of the others are
        (`migrations.bootstrap`). Then plan, and `rebalance`. Repeating it does no harm.

        Args:
            shard: Its name; one of ``shards``.
            weight: How large it is compared with others.

        Raises:
            CopiesDifferError: A broadcast table cannot be brought there.
            MigrationNeededError: It does not have the library's tables.
            SettingsError: It is not configured, or its weight is none.
            ShardMapExistsError: It holds rows already, or was a shard of another cluster.
            WrongShardError: It is another shard.
        """
        self._check_shard(shard)
        if not weight > 0:
            raise SettingsError("weight", "a shard's weight is a positive number")
        access = self._moving
        maps = [access.newest_map(group) for group in self.groups]
        tables = [table for group in self.groups for table in access.tables_of(group)]
        with self._unchecked(shard) as conn:
            joining.introduce(conn, shard, maps, tables, schema=access.schema)
        with self._control_transaction("a look at the shards") as conn:
            known, _ = joining.weights_of(conn, schema=access.schema)
        # Before it is listed: from then on it may get buckets, and with them writers.
        others = sorted(known.keys() & access.engines.keys() - {shard})
        self._access.companions.join(self._access, shard, others)
        if shard in known:
            self._list(shard, weight)
            self._repair_copies(others)
            return
        try:
            self._list_with_copies(shard, weight)
        except ShardListChangedError:  # it is read now
            self._list_with_copies(shard, weight)

    def _list_with_copies(self, shard: str, weight: float) -> None:
        """Let writers of broadcast tables wait until a shard has those, and is listed."""
        with copied_to(self._access, shard, self._moving.engines[shard]):
            self._list(shard, weight)
        copies = self._access.copies
        with suppress(ShardListChangedError):  # it is read now, so that our own writers know it
            copies.check(copies.shards())

    def _list(self, shard: str, weight: float) -> None:
        with self._control_transaction(f"adding shard {shard}") as conn:
            joining.list_shard(conn, shard, weight=weight, schema=self._moving.schema)

    def _repair_copies(self, others: Sequence[str]) -> None:
        for table in self.broadcast_tables if others else ():
            try:
                self.repair_broadcast(table, source=others[0])
            except ShardListChangedError:  # it is read now
                self.repair_broadcast(table, source=others[0])

    def remove_shard(self, shard: str) -> None:
        """Let a shard go that has been drained; then take it out of the configuration.

        Raises:
            MoveRefusedError: It has buckets, a move is not done, or transactions are not ended.
            ShardUnavailableError: A shard does not answer.
        """
        self._check_shard(shard)
        access = self._moving
        joining.check_unneeded(access.engines, shard, schema=access.schema)
        with self._control_transaction(f"removing shard {shard}") as conn:
            joining.delist_shard(conn, shard, schema=access.schema)

    def forget(
        self, group: EntityGroup, *, shard: str | None = None, dry_run: bool = False
    ) -> dict[str, Sequence[int]]:
        """Drop the triggers that buckets have left behind where they were; return those buckets.

        They refuse whoever writes there past the library, from a map that is old. Drop them when
        no such process can be left: each costs writers of the table a look at the key.

        Args:
            group: Whose buckets.
            shard: Where; on all shards by default.
            dry_run: Only say which.

        Raises:
            MoveBlockedError: A transaction holds one of the tables.
            ShardUnavailableError: A shard does not answer.
        """
        shards = sorted(self._moving.engines) if shard is None else [shard]
        for name in shards:
            self._check_shard(name)
        return {name: forget(self._moving, group, name, dry_run=dry_run) for name in shards}

    # Settings ------------------------------------------------------------------------------

    def _mover(
        self,
        clean_after_seconds: float | None,
        *,
        bytes_per_second: float | None = None,
        lease_seconds: float = 60.0,
        progress: Told = _untold,
    ) -> Mover:
        access = self._moving
        if bytes_per_second is not None and not bytes_per_second > 0:
            raise SettingsError("bytes_per_second", "it is a positive number, or left out")
        settings = MoveSettings(
            access.keep_seconds if clean_after_seconds is None else clean_after_seconds,
            bytes_per_second=bytes_per_second,
            lease_seconds=lease_seconds,
            progress=progress,
        )
        return Mover(access, settings)

    def _check_shard(self, shard: str) -> None:
        if shard not in self._moving.engines:
            raise SettingsError("shard", f"{shard!r} is no shard of this cluster; configure it")

    @contextmanager
    def _control_transaction(self, attempted: str) -> Iterator[Connection]:
        with fresh_reads(self._moving.control) as conn, resuming(conn, attempted):
            yield conn
