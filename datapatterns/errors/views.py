"""Materialized views."""

from datapatterns.errors.families import (
    ConfigurationError,
    ConflictError,
    CorruptionError,
    UnavailableError,
)


class ViewChangedError(ConfigurationError):
    """The view was created from another definition than the one at hand.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"the definition of view {view!r} has changed since it was created;"
            " drop() it, create() it and populate() it in a migration"
        )
        self.view = view


class ViewDefinitionError(ConfigurationError):
    """No strategy keeps a view of this query exact.

    Attributes:
        view: The view's name.
        clause: What in the query stands in the way.
        advice: The way out.
    """

    def __init__(self, view: str, *, clause: str, advice: str) -> None:
        super().__init__(f"view {view!r} cannot be kept because of {clause}; {advice}")
        self.view = view
        self.clause = clause
        self.advice = advice


class ViewMissingError(ConfigurationError):
    """The view has not been created in this database.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(f"view {view!r} does not exist; create() it in a migration")
        self.view = view


class SnapshotOutdatedError(ConflictError):
    """What this transaction needs has moved on since it took its snapshot.

    Attributes:
        relation: The view that was refreshed, or the table that was truncated or rewritten.
    """

    def __init__(self, relation: str) -> None:
        super().__init__(
            f"{relation} was refreshed, truncated or rewritten after this transaction had taken"
            " its snapshot; begin it again"
        )
        self.relation = relation


class ViewBehindError(UnavailableError):
    """The view did not contain a write before the deadline.

    Attributes:
        view: The view's name.
        timeout_seconds: How long was waited.
    """

    def __init__(self, view: str, *, timeout_seconds: float) -> None:
        super().__init__(
            f"view {view!r} did not contain the write after {timeout_seconds} s;"
            " refresh it, or read the tables"
        )
        self.view = view
        self.timeout_seconds = timeout_seconds


class ViewNotPopulatedError(UnavailableError):
    """The view has been created, but not filled yet.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"view {view!r} has not been populated; call populate() after create() has committed"
        )
        self.view = view


class ViewDiffersError(CorruptionError):
    """A view holds something that its query cannot have produced.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"view {view!r} counts fewer rows than none: it missed changes;"
            " find out how, then rebuild() it"
        )
        self.view = view
