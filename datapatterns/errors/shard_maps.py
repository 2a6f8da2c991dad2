"""Changes of the shard map while it is in use."""

from datapatterns.errors.families import ConfigurationError, UnavailableError


class MapChangeRefusedError(ConfigurationError):
    """The map of a group cannot be changed so.

    Attributes:
        group: The name of the group.
        reason: What is in the way.
    """

    def __init__(self, group: str, reason: str, advice: str) -> None:
        super().__init__(f"the map of group {group!r} cannot be changed so: {reason}; {advice}")
        self.group = group
        self.reason = reason
        self.advice = advice


class MapChangeUnsettledError(UnavailableError):
    """A change of the map is in use, and transactions that began with the map before still run.

    Attributes:
        group: The name of the group.
        shard: Where they run.
        bucket: Which bucket they use.
    """

    def __init__(self, group: str, *, shard: str, bucket: int) -> None:
        super().__init__(
            f"the change of group {group!r} is in use, but on shard {shard!r} transactions of the"
            f" map before still use bucket {bucket}; end them, or wait, and do the same again:"
            " until then the bucket cannot move, and the map not be changed further"
        )
        self.group = group
        self.shard = shard
        self.bucket = bucket
