"""Versions of read models that take each other's place."""

from collections.abc import Sequence

from datapatterns.errors.families import ConfigurationError, UnavailableError


class PromotionRefusedError(ConfigurationError):
    """A version of a projection cannot take the place of the live one, or must not be retired.

    Attributes:
        projection: Its name.
        version: Which one.
    """

    def __init__(self, projection: str, version: int, advice: str) -> None:
        super().__init__(f"version {version} of projection {projection}: {advice}")
        self.projection = projection
        self.version = version
        self.advice = advice


class ReadModelInUseError(ConfigurationError):
    """Something is bound to the table of a read model, so it would stay with the old rows.

    Attributes:
        projection: Its name.
        dependants: What, as PostgreSQL describes it.
    """

    def __init__(self, projection: str, dependants: Sequence[str]) -> None:
        super().__init__(
            f"the tables of projection {projection} cannot be swapped, for they are used by"
            f" {', '.join(dependants)}; drop that and make it again afterwards"
        )
        self.projection = projection
        self.dependants = tuple(dependants)


class PromotionTimeoutError(UnavailableError):
    """A version could not take the place of the live one in time; nothing has changed.

    Attributes:
        projection: Its name.
        version: Which one.
        pids: The sessions that were waited for, if they are known.
    """

    def __init__(
        self, projection: str, version: int, *, waited_for: str, pids: Sequence[int] = ()
    ) -> None:
        listed = f" (pid {', '.join(map(str, pids))})" if pids else ""
        super().__init__(
            f"version {version} of projection {projection} is not live yet: waited for"
            f" {waited_for}{listed}; end that, or try again with more time"
        )
        self.projection = projection
        self.version = version
        self.waited_for = waited_for
        self.pids = tuple(pids)


class StandbyBehindError(UnavailableError):
    """The version to go back to is older than what readers have seen.

    Attributes:
        projection: Its name.
        version: The one to go back to.
        position: How far it is.
        shown: How far the live one is.
    """

    def __init__(self, projection: str, version: int, *, position: int, shown: int) -> None:
        super().__init__(
            f"version {version} of projection {projection} is at position {position}, readers have"
            f" seen {shown}; run it until it is there, or allow an older state"
        )
        self.projection = projection
        self.version = version
        self.position = position
        self.shown = shown
