"""References from rows of one shard to rows of another."""

from collections.abc import Iterable

from datapatterns.errors.families import ConfigurationError, ConflictError, UnavailableError

_SHOWN = 5


class ReferenceDefinitionError(ConfigurationError):
    """A reference cannot be kept as it is declared.

    Attributes:
        reference: Its name.
        reason: Why.
    """

    def __init__(self, reference: str, reason: str, advice: str) -> None:
        super().__init__(f"reference {reference!r}: {reason}; {advice}")
        self.reference = reference
        self.reason = reason
        self.advice = advice


class ReferenceWriteError(ConfigurationError):
    """A write cannot be checked against a reference here, or not in this way.

    Attributes:
        reference: The reference's name.
        reason: Why.
    """

    def __init__(self, reference: str, reason: str, advice: str) -> None:
        super().__init__(f"reference {reference!r}: {reason}; {advice}")
        self.reference = reference
        self.reason = reason
        self.advice = advice


class ParentMissingError(ConflictError):
    """A row would refer to one that does not exist.

    Attributes:
        reference: The reference's name.
        keys: What was referred to, and is not there.
    """

    def __init__(self, reference: str, parent: str, keys: Iterable[tuple[object, ...]]) -> None:
        self.keys = tuple(sorted(keys, key=repr))
        super().__init__(
            f"reference {reference!r}: {parent} has no row {_listed(self.keys)}; nothing was kept:"
            " read again, and write the parent first, or in the same transaction"
        )
        self.reference = reference


class ParentInUseError(ConflictError):
    """A row would go, or get another key, while others refer to it.

    Attributes:
        reference: The reference's name.
        keys: What is referred to.
    """

    def __init__(
        self, reference: str, child: str, parent: str, keys: Iterable[tuple[object, ...]]
    ) -> None:
        self.keys = tuple(sorted(keys, key=repr))
        super().__init__(
            f"reference {reference!r}: rows of {child} refer to {parent} {_listed(self.keys)};"
            " nothing was kept: delete them or let them refer to others first"
        )
        self.reference = reference


class BranchesUnsettledError(UnavailableError):
    """What other transactions have prepared on a shard has not ended, so nobody sees all its rows.

    Attributes:
        shard: Where.
        branches: The names of what is prepared there.
    """

    def __init__(self, shard: str, branches: Iterable[str]) -> None:
        self.branches = tuple(sorted(branches))
        super().__init__(
            f"shard {shard!r} holds prepared transactions that have not ended:"
            f" {', '.join(self.branches[:_SHOWN])}; nothing was kept: retry, and see what"
            " ShardCluster.recover() says of them"
        )
        self.shard = shard


def _listed(keys: tuple[tuple[object, ...], ...]) -> str:
    shown = ", ".join(repr(key[0] if len(key) == 1 else key) for key in keys[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more"
