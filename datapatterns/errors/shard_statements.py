"""Statements over several shards."""

from collections.abc import Iterable

from datapatterns.errors.families import ConfigurationError


class MergeLimitError(ConfigurationError):
    """A statement over several shards asks for more rows than may be merged in memory.

    Attributes:
        limit: How many rows may be merged.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the shards would send more than {limit} rows to be merged; narrow the statement,"
            " add a LIMIT, or read shard by shard"
        )
        self.limit = limit


class MultiShardWriteError(ConfigurationError):
    """One transaction would write to several shards, and so could be half done after a crash.

    Attributes:
        shards: The shards that it would write to.
    """

    def __init__(self, shards: Iterable[str]) -> None:
        self.shards = tuple(sorted(shards))
        super().__init__(
            f"this transaction would write to {', '.join(self.shards)}, which cannot commit"
            " together; commit for each shard key, write in a session(atomic=True) or atomically(),"
            " or place rows in bulk with ShardCluster.placed()"
        )


class PageCursorError(ConfigurationError):
    """A page cannot begin or end where it was to.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"there is no page: {reason}; hand back the cursor of the page before with the same"
            " ``by``, which names NOT NULL columns that tell all rows apart"
        )
        self.reason = reason


class PartialAnswerError(ConfigurationError):
    """An answer without some shards would not be short but wrong.

    Attributes:
        clause: The part of the statement that stands in the way.
    """

    def __init__(self, clause: str, advice: str) -> None:
        super().__init__(
            f"without a shard, {clause} would be wrong and not only short; {advice}, or leave out"
            ' partial="allow"'
        )
        self.clause = clause
        self.advice = advice


class ScatterRefusedError(ConfigurationError):
    """A statement does not say for which shard key, so it would have to go to every shard.

    Attributes:
        tables: The sharded tables that it names.
    """

    def __init__(self, tables: Iterable[str]) -> None:
        self.tables = tuple(sorted(tables))
        super().__init__(
            f"no shard key of {', '.join(self.tables)} follows from the WHERE clause; compare the"
            " key with = or IN, or allow a read of all shards with execution_options(scatter=True)"
        )


class UnmergeableQueryError(ConfigurationError):
    """The answers of several shards cannot be merged into exactly what one database would say.

    Attributes:
        clause: The part of the statement that stands in the way.
    """

    def __init__(self, clause: str, advice: str) -> None:
        super().__init__(f"{clause} cannot be merged exactly over several shards; {advice}")
        self.clause = clause
        self.advice = advice


class UnroutableStatementError(ConfigurationError):
    """It cannot be told which shards a statement is for.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason
        self.advice = advice
