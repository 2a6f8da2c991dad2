"""Index tables over shards: building them, and reading them before that is done."""

from datapatterns.errors.families import ConflictError, CorruptionError, UnavailableError


class ShardIndexNotReadyError(UnavailableError):
    """An index table over shards is not read, as it may lack rows.

    Attributes:
        index: Its name.
        state: What the shard says: ``building``, ``verifying``, ``failed`` or ``dropping``.
    """

    def __init__(self, index: str, *, state: str) -> None:
        advice = {
            "failed": "datapatterns indexes list says why; mend that, and build it again",
            "dropping": "use it no more",
        }.get(state, "ShardIndexes.build() ends that, or datapatterns indexes backfill")
        super().__init__(
            f"index table {index!r} is {state}; {advice}; until then read the rows of all shards,"
            " with scatter=True"
        )
        self.index = index
        self.state = state


class ShardIndexFailedError(CorruptionError):
    """An index table over shards was built, and does not agree with its table.

    Attributes:
        index: Its name.
        failure: What was found.
    """

    def __init__(self, index: str, *, failure: str) -> None:
        super().__init__(
            f"the building of index table {index!r} has failed: {failure}; let each two rows with"
            " one key have different ones (ShardIndexes.conflicts() lists them), then build it"
            " again: what is done is kept"
        )
        self.index = index
        self.failure = failure


class ShardIndexGoneError(ConflictError):
    """Somebody has dropped an index table over shards, or built it anew, in the middle of work.

    Attributes:
        index: Its name.
    """

    def __init__(self, index: str) -> None:
        super().__init__(
            f"index table {index!r} is not the one any more that this began with; see how it"
            " stands (ShardIndexes.status()), and decide again"
        )
        self.index = index
