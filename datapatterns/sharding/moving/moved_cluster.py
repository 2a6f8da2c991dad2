"""What a cluster can be told about moving its buckets."""

from collections.abc import Callable

from datapatterns.errors import SettingsError
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.moving.move import Move, MoveProgress
from datapatterns.sharding.moving.mover import Mover
from datapatterns.sharding.moving.settings import MoveAccess, MoveSettings


class MovedCluster:
    """The part of a `ShardCluster` that moves buckets from shard to shard, while all goes on."""

    @property
    def _moving(self) -> MoveAccess:
        raise NotImplementedError

    def move(  # noqa: PLR0913 -- settings, all by name
        self,
        group: EntityGroup,
        bucket: int,
        *,
        to: str,
        clean_after_seconds: float | None = None,
        bytes_per_second: float | None = None,
        lease_seconds: float = 60.0,
        progress: Callable[[MoveProgress], object] = lambda _: None,
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
            MoveBlockedError: A transaction held the tables, or the bucket, for too long.
            MoveMismatchError: The copy was not equal; nothing has changed.
            ShardUnavailableError: A shard does not answer; resume later.
            ShardedTableError: A table cannot be moved; nothing has changed.
            StaleMoveError: The bucket is moving already, or is there already.
        """
        access = self._moving
        if to not in access.engines:
            raise SettingsError("to", f"{to!r} is no shard of this cluster")
        settings = MoveSettings(
            self._moving.keep_seconds if clean_after_seconds is None else clean_after_seconds,
            bytes_per_second=bytes_per_second,
            lease_seconds=lease_seconds,
            progress=progress,
        )
        mover = Mover(access, settings)
        source = access.newest_map(group).owners[bucket]
        return mover.run(mover.plan(group, bucket, source=source, target=to))

    def moves(self, *, live: bool = True) -> list[Move]:
        """Return the moves that are under way, or all of them, the oldest first."""
        return Mover(self._moving, MoveSettings(0)).moves(live=live)

    def resume_moves(self, *, clean_after_seconds: float | None = None) -> list[Move]:
        """Take up all moves that nobody works at; return them as they have ended."""
        seconds = self._moving.keep_seconds if clean_after_seconds is None else clean_after_seconds
        mover = Mover(self._moving, MoveSettings(seconds))
        return [mover.run(move.move_id) for move in mover.moves(live=True) if not move.is_leased]

    def abort_move(self, group: EntityGroup, bucket: int) -> Move | None:
        """Undo the move of a bucket; return it as it has ended, None if there is none.

        One that is past its cut cannot be undone: it goes on to its end.
        """
        mover = Mover(self._moving, MoveSettings(self._moving.keep_seconds))
        for move in mover.moves(live=True):
            if (move.group, move.bucket) == (group.name, bucket):
                return mover.abort(move.move_id)
        return None
