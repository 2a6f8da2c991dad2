"""Errors of moving buckets between shards."""

from uuid import UUID

from datapatterns.errors.families import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    UnavailableError,
)


class MoveRefusedError(ConfigurationError):
    """A bucket cannot be moved as things are; nothing has changed.

    Attributes:
        place: What is in the way.
    """

    def __init__(self, place: str, advice: str) -> None:
        super().__init__(f"{place}: {advice}")
        self.place = place
        self.advice = advice


class MoveBusyError(ConflictError):
    """Another worker is at a move, or it has ended.

    Attributes:
        move_id: Which move.
    """

    def __init__(self, move_id: UUID) -> None:
        super().__init__(
            f"another worker is at move {move_id}, or it has ended; look at ShardCluster.moves(),"
            " and resume it when its worker is gone"
        )
        self.move_id = move_id


class MoveTakenOverError(ConflictError):
    """This worker was slow, and another one is at its move; what it was doing is undone.

    Attributes:
        bucket: Which bucket moves.
        place: The shard that says so, or the control database.
    """

    def __init__(self, bucket: int, place: str) -> None:
        super().__init__(
            f"another worker is at the move of bucket {bucket}, or has ended it, as {place} says;"
            " leave it to that one"
        )
        self.bucket = bucket
        self.place = place


class StaleMoveError(ConflictError):
    """A move does not go with the map of today.

    Attributes:
        bucket: Which bucket.
    """

    def __init__(self, bucket: int, advice: str) -> None:
        super().__init__(f"bucket {bucket} cannot be moved so: {advice}")
        self.bucket = bucket
        self.advice = advice


class MoveBlockedError(UnavailableError):
    """Somebody has held for long what a move needs for a moment.

    Attributes:
        shard: Where.
        what: What is held.
    """

    def __init__(self, shard: str, what: str) -> None:
        super().__init__(
            f"on shard {shard!r}, a transaction has held {what} for long: end it (one that is"
            " prepared, by ShardCluster.recover()), then resume the move"
        )
        self.shard = shard
        self.what = what


class MoveMismatchError(CorruptionError):
    """The target holds other rows of a bucket than the source, so it was not given the bucket.

    Attributes:
        bucket: Which bucket.
        table: The table that differs.
        rows: How many rows the source has.
        found: How many the target has.
    """

    def __init__(self, bucket: int, table: str, *, rows: int, found: int) -> None:
        super().__init__(
            f"bucket {bucket} was not moved, and stays where it is: {table} has {rows} rows of it"
            f" there, and {found} on the target, or others; look for triggers, rules or sessions"
            " that write past those of the move"
        )
        self.bucket = bucket
        self.table = table
        self.rows = rows
        self.found = found
