"""Materialized views."""

from collections.abc import Sequence

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
            " replace it in a migration, as alembic revision --autogenerate writes it"
        )
        self.view = view


class ViewCycleError(ConfigurationError):
    """Views are built upon each other in a circle, so none of them can be first.

    Attributes:
        views: Their names, each built upon the next; the first again at the end.
    """

    def __init__(self, views: list[str]) -> None:
        super().__init__(
            f"views are built upon each other in a circle: {' -> '.join(views)};"
            " let one of them read the tables"
        )
        self.views = views


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


class ViewInUseError(ConfigurationError):
    """Other views are built upon this one.

    Attributes:
        view: The view's name.
        children: Those that read it.
        waiting: Those of them that will not, once their next version has taken their place.
    """

    def __init__(self, view: str, *, children: list[str], waiting: Sequence[str] = ()) -> None:
        others = [child for child in children if child not in waiting]
        advice = [f"drop {', '.join(others)} first, and create them anew after it"] * bool(others)
        if waiting:
            advice.append(
                f"{', '.join(waiting)} will not read it any more, but the next version waits for"
                " whoever refreshes it: commit the migration that replaces it by itself, run a"
                " worker or `datapatterns views refresh` until it is in its place, and go on then"
            )
        super().__init__(f"view {view!r} is read by {', '.join(children)}; {'; '.join(advice)}")
        self.view = view
        self.children = children
        self.waiting = [*waiting]


class ViewMigrationError(ConfigurationError):
    """A migration cannot do with a view what it says.

    Attributes:
        view: The view's name.
        reason: What stands in the way, and the way out.
    """

    def __init__(self, view: str, reason: str) -> None:
        super().__init__(f"view {view!r} cannot be migrated: {reason}")
        self.view = view
        self.reason = reason


class ViewMissingError(ConfigurationError):
    """The view has not been created in this database.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(f"view {view!r} does not exist; create() it in a migration")
        self.view = view


class ViewSampleError(ConfigurationError):
    """No sample can be taken of a view.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(
            f"no sample can be taken of view {view!r}, since what it is grouped by has no hash;"
            " verify all of it, or a part of it by a condition"
        )
        self.view = view


class ViewReadOnlyError(ConfigurationError):
    """An object of a class that is mapped to a view was to be written.

    Attributes:
        view: The view's name.
    """

    def __init__(self, view: str) -> None:
        super().__init__(f"view {view!r} cannot be written; write the tables that it reads")
        self.view = view


class ViewUndeclaredError(ConfigurationError):
    """No view of this name is declared, or two are.

    Attributes:
        view: The name that was asked for.
        reason: What is, and the way out.
    """

    def __init__(self, view: str, reason: str) -> None:
        super().__init__(f"view {view!r}: {reason}")
        self.view = view
        self.reason = reason


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


class ViewTimeoutError(UnavailableError):
    """A refresh took longer than it may.

    Attributes:
        view: The view's name.
        timeout_seconds: How long a statement of it may take.
    """

    def __init__(self, view: str, *, timeout_seconds: float) -> None:
        super().__init__(
            f"a refresh of view {view!r} was given up after {timeout_seconds:g} s; declare it with"
            " more timeout_seconds, refresh it more often, or index what its tables are joined by"
        )
        self.view = view
        self.timeout_seconds = timeout_seconds


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
