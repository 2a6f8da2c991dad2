"""What operations on a view answer."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from datapatterns.materialized_view.policy import RefreshPolicy
from datapatterns.materialized_view.strategy import Explanation, Strategy


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """What a refresh did.

    Attributes:
        strategy: How it was done. A view that is kept by counting is rebuilt after a TRUNCATE of a
            whole table, say.
        pending_rows: How many captured changes it took in; an UPDATE is two for each row.
        rows_changed: How many stored rows were written or deleted.
        duration_seconds: How long it took, without the commit.
        partitions: Of how many partitions the rows were computed anew, since they came, went,
            were truncated, or are not captured.
        reason: Why a view was rebuilt that is not kept so; None for other reports.
    """

    strategy: Strategy
    pending_rows: int
    rows_changed: int
    duration_seconds: float
    partitions: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far a view is behind its tables.

    Attributes:
        populated: Whether it has been filled since it was created or rebased.
        pending_rows: How many captured changes it lacks, counted up to a limit; those that the
            views lack that it is built upon, too.
        stale_seconds: 0 if nothing is pending, else the time since ``as_of``: at most so long has
            the oldest of them been missing. So also if ``has_to_be_rebuilt``.
        refreshed_at: When it was last refreshed.
        as_of: Since when changes of tables may be missing. That is when it was last refreshed,
            or, if it is built upon other views, how old the oldest of them was by then.
        last_duration_seconds: How long that took.
        has_to_be_rebuilt: Whether its tables have changed in a way that is not captured, as by a
            new partition. The next refresh rebuilds it.
    """

    populated: bool
    pending_rows: int
    stale_seconds: float
    refreshed_at: datetime | None
    as_of: datetime | None
    last_duration_seconds: float | None
    has_to_be_rebuilt: bool = False


class ViewState(StrEnum):
    """How a view stands.

    FRESH: nothing is missing. STALE: committed changes are, which nobody has to wonder at.
    OVERDUE: they have been for longer than was declared. UNPOPULATED: it is there, but empty.
    REPLACING: it is filled, and the next refresh lets readers see it in place of another version.
    MISSING: it was not created. CHANGED: it was created from another query. FOREIGN: it was last
    refreshed in another database, from which this one was restored.
    """

    FRESH = "fresh"
    STALE = "stale"
    OVERDUE = "overdue"
    UNPOPULATED = "unpopulated"
    REPLACING = "replacing"
    MISSING = "missing"
    CHANGED = "changed"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """How a view stands, and how it is kept.

    Attributes:
        name: What it is called.
        state: In one word.
        explanation: Which strategy keeps it, and why.
        policy: When workers refresh it.
        parents: The views that it is built upon directly.
        freshness: How far it is behind; None for a view that cannot say so.
    """

    name: str
    state: ViewState
    explanation: Explanation
    policy: RefreshPolicy
    parents: tuple[str, ...]
    freshness: Freshness | None


class DifferenceKind(StrEnum):
    """On which side a row is."""

    MISSING = "missing"
    UNEXPECTED = "unexpected"


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that view and query do not share.

    Attributes:
        kind: Missing from the view, or unexpected in it.
        row: Its values by column.
    """

    kind: DifferenceKind
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ViewVerification:
    """What came of comparing a view with its query.

    Attributes:
        differences: Rows that they do not share, up to the limit.
        rows: How many rows of the view were compared.
        share: Which share of its groups that was, 1.0 for all that met the condition.
        seed: Which sample that was; None for no sample.
    """

    differences: tuple[Difference, ...]
    rows: int
    share: float
    seed: int | None

    @property
    def matches(self) -> bool:
        """Whether nothing differs."""
        return not self.differences
