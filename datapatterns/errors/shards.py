"""Which shard a row lies on: keys, tables and the shard map."""

from collections.abc import Iterable

from datapatterns.errors.families import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    UnavailableError,
)


class BucketCountError(ConfigurationError):
    """Keys cannot be spread over this number of buckets.

    Attributes:
        buckets: The number that was asked for.
    """

    def __init__(
        self, buckets: int, needed: str = "they are addressed by bits; use a power of two"
    ) -> None:
        super().__init__(f"keys cannot be spread over {buckets} buckets: {needed}")
        self.buckets = buckets


class GroupMismatchError(ConfigurationError):
    """The code declares an entity group otherwise than its stored map.

    Attributes:
        group: The name of the group.
        declared: What the code says.
        stored: What the map was created for.
    """

    def __init__(self, group: str, *, declared: str, stored: str) -> None:
        super().__init__(
            f"group {group!r} is declared as {declared}, but its data was placed by {stored};"
            " declare what is stored, or copy the data into a new group"
        )
        self.group = group
        self.declared = declared
        self.stored = stored


class RangeBoundError(ConfigurationError):
    """Keys cannot be cut into ranges at this place.

    Attributes:
        bound: The key at which a range would begin or end.
    """

    def __init__(self, bound: object, advice: str) -> None:
        super().__init__(f"bound {bound!r}: {advice}")
        self.bound = bound
        self.advice = advice


class ShardKeyChangedError(ConfigurationError):
    """A row's shard key would change, which would leave it on the wrong shard.

    Attributes:
        table: The table of the row.
        column: Its shard key.
    """

    def __init__(self, *, table: str, column: str) -> None:
        super().__init__(
            f"{table}.{column} is a shard key and cannot be changed in place; move_row() of the"
            " session or cluster gives a row another key"
        )
        self.table = table
        self.column = column


class RowHasDependantsError(ConfigurationError):
    """A row cannot get another shard key while other rows refer to it.

    Attributes:
        table: The table of the row.
        dependants: The tables whose rows refer to it.
    """

    def __init__(self, table: str, dependants: Iterable[str], advice: str) -> None:
        self.dependants = tuple(sorted({*dependants}))
        super().__init__(
            f"rows of {', '.join(self.dependants)} refer to the row of {table!r}; {advice}"
        )
        self.table = table
        self.advice = advice


class ShardKeyError(ConfigurationError):
    """A value cannot be, or is not, the shard key that it is used as.

    Attributes:
        group: The name of the entity group.
    """

    def __init__(self, group: str, advice: str) -> None:
        super().__init__(f"shard key of {group!r}: {advice}")
        self.group = group
        self.advice = advice


class ShardMapExistsError(ConfigurationError):
    """A shard map cannot be created here, because something else is here already.

    Attributes:
        place: Where.
    """

    def __init__(self, place: str, advice: str) -> None:
        super().__init__(f"{place}: {advice}")
        self.place = place
        self.advice = advice


class ShardMapMissingError(ConfigurationError):
    """Nobody has decided yet where the buckets of a group lie.

    Attributes:
        group: The name of the group.
    """

    def __init__(self, group: str) -> None:
        super().__init__(
            f"the control database has no map of group {group!r};"
            " create it once with ShardCluster.create_map()"
        )
        self.group = group


class ShardedTableError(ConfigurationError):
    """A table cannot be sharded as it is declared.

    Attributes:
        table: Its name.
    """

    def __init__(self, table: str, advice: str) -> None:
        super().__init__(f"table {table!r}: {advice}")
        self.table = table
        self.advice = advice


class ShardTransactionEndedError(ConfigurationError):
    """A part of a transaction over several shards was ended by itself.

    Attributes:
        shard: Where.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"the transaction on shard {shard!r} was committed or rolled back inside the block, so"
            " the others cannot go with it; leave commit and rollback to the block"
        )
        self.shard = shard


class UnroutableKeyError(ConfigurationError):
    """No bucket holds such a key.

    Attributes:
        key: The key.
    """

    def __init__(self, key: object, advice: str) -> None:
        super().__init__(f"no bucket holds key {key!r}: {advice}")
        self.key = key
        self.advice = advice


class WrongShardError(ConfigurationError):
    """The server behind a connection string is another shard than the one it is named for.

    Attributes:
        expected: The shard that the configuration names.
        found: The shard that the server says it is; None if it is none yet.
    """

    def __init__(self, *, expected: str, found: str | None) -> None:
        state = "has not been made a shard" if found is None else f"says that it is {found!r}"
        super().__init__(
            f"the server that is configured as shard {expected!r} {state};"
            " check the connection strings, and that ShardCluster.create_map() has run"
        )
        self.expected = expected
        self.found = found


class RowMissingError(ConflictError):
    """The row that was to get another shard key is not there, or not any more.

    Attributes:
        table: Its table.
    """

    def __init__(self, table: str) -> None:
        super().__init__(f"the row of {table!r} is gone; read again, and decide anew")
        self.table = table


class StaleShardMapError(ConflictError):
    """A shard no longer owns what the map says; the map has been read again.

    Attributes:
        shard: The shard that refused.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"shard {shard!r} owns other buckets than the map says;"
            " repeat the whole transaction, which then follows the new map"
        )
        self.shard = shard


class ShardTransactionRefusedError(ConflictError):
    """Recovery took a transaction for given up before it was decided; nothing of it happened.

    Attributes:
        shard: The shard that was to decide.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"the transaction was slow, and recovery has given it up on shard {shard!r}; nothing of"
            " it happened: repeat it"
        )
        self.shard = shard


class IdWorkersTakenError(UnavailableError):
    """So many processes make ids that no number is left for another one.

    Attributes:
        workers: How many there are.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(
            f"{workers} processes hold all numbers for making ids; close() generators that are not"
            " needed, or wait: the number of a process that died is free after two minutes"
        )
        self.workers = workers


class ShardUnavailableError(UnavailableError):
    """A shard does not answer.

    Attributes:
        shard: Which one.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"shard {shard!r} does not answer; the others are usable, retry when it is back"
        )
        self.shard = shard


class ShardBusyError(ShardUnavailableError):
    """All connections to a shard that this process may have are in use.

    Attributes:
        shard: Which one.
    """

    def __init__(self, shard: str) -> None:
        UnavailableError.__init__(
            self,
            f"all connections to shard {shard!r} are in use, and none was given back in time; the"
            " other shards are usable: bound statements with timeout_seconds, or raise pool_size in"
            " engine_options",
        )
        self.shard = shard


class ShardTimeoutError(ShardUnavailableError):
    """A shard did not answer within the time that a statement has.

    Attributes:
        shard: Which one.
        seconds: How long it had.
    """

    def __init__(self, shard: str, seconds: float) -> None:
        UnavailableError.__init__(
            self,
            f"shard {shard!r} did not answer within {seconds:g} s; the others are usable: retry, or"
            " give the statement a longer timeout_seconds",
        )
        self.shard = shard
        self.seconds = seconds


class ShardMapCorruptError(CorruptionError):
    """The stored map does not give each bucket to one shard.

    Attributes:
        group: The name of the group.
    """

    def __init__(self, group: str, advice: str) -> None:
        super().__init__(f"the map of group {group!r} is damaged: {advice}")
        self.group = group
        self.advice = advice
