"""Tables of which every shard holds a copy."""

from collections.abc import Iterable

from datapatterns.errors.families import ConfigurationError, ConflictError, CorruptionError


class BroadcastWriteError(ConfigurationError):
    """Rows of a broadcast table cannot be written here, or not in this way.

    Attributes:
        table: The table.
        reason: Why.
    """

    def __init__(self, table: str, reason: str, advice: str) -> None:
        super().__init__(f"broadcast table {table!r}: {reason}; {advice}")
        self.table = table
        self.reason = reason
        self.advice = advice


class ShardListChangedError(ConflictError):
    """A shard was added or removed while a transaction was to write to all of them.

    Attributes:
        shards: The shards that there are now.
    """

    def __init__(self, shards: Iterable[str]) -> None:
        self.shards = tuple(sorted(shards))
        super().__init__(
            f"the shards are {', '.join(self.shards)} now; nothing was written, repeat the"
            " transaction, which then writes to all of them"
        )


class CopiesDifferError(CorruptionError):
    """Copies of a broadcast table are not equal.

    Attributes:
        table: The table.
        shard: Where it differs from the first shard.
        reason: In what.
    """

    def __init__(self, table: str, shard: str, reason: str) -> None:
        super().__init__(
            f"broadcast table {table!r} on shard {shard!r}: {reason}; nothing was written. See what"
            " differs with ShardCluster.verify_broadcast(), and mend it with repair_broadcast()"
        )
        self.table = table
        self.shard = shard
        self.reason = reason
