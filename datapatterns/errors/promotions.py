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

    Of a projection that sends messages it may be the live one that is behind.

    Attributes:
        projection: Its name.
        version: The one that is behind.
        position: How far it is.
        shown: How far it has to be.
    """

    def __init__(
        self, projection: str, version: int, *, position: int, shown: int, exact: bool = False
    ) -> None:
        advice = (
            f"readers have seen {shown}; run it until it is there, or allow an older state"
            if not exact
            else f"the other one at {shown}; as messages are sent, or may be, run it until it is"
            " there, or one of them would be lost or sent again"
        )
        super().__init__(
            f"version {version} of projection {projection} is at position {position}, {advice}"
        )
        self.projection = projection
        self.version = version
        self.position = position
        self.shown = shown
