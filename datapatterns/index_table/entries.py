"""What index tables answer with."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypeVar

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A row of an index table; also the place in it after which a next page begins.

    Attributes:
        key: What the row is found by, in the order of the declaration.
        primary_key: Which row of the base table it is.
        included: The included columns by name.
    """

    key: tuple[Any, ...]
    primary_key: tuple[Any, ...]
    included: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Match(Generic[R]):
    """A row of the base table and the index row that led to it."""

    entry: IndexEntry
    row: R


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """How far the building of an index has come.

    Attributes:
        rows_done: Rows of the base table looked at so far, over all chunks.
        done: Every row that was there when the index was created has been looked at.
    """

    rows_done: int
    done: bool


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What an index has taken in that is kept behind its writers.

    Attributes:
        rows_changed: How many rows were looked at because they had changed; None of all.
        entries_written: How many index rows were inserted or changed.
        entries_removed: How many were removed.
        is_rebuilt: Whether all rows were read anew: after a truncation, say, or when the log of
            changes didn't tell all.
    """

    rows_changed: int | None
    entries_written: int
    entries_removed: int
    is_rebuilt: bool


@dataclass(frozen=True, slots=True)
class IndexLag:
    """How far an index is behind its table.

    Attributes:
        pending_rows: How many logged changes are still to be taken in; counted up to 100,000.
        behind_seconds: 0 if there are none, else the age of what the index shows: whatever was
            committed longer ago is in it.
        must_rebuild: Whether all rows have to be read anew, so that nobody can tell how many
            changes are missing.
    """

    pending_rows: int
    behind_seconds: float
    must_rebuild: bool


NEVER_BEHIND: Final = IndexLag(pending_rows=0, behind_seconds=0.0, must_rebuild=False)
"""That of an index that its writers keep."""


@dataclass(frozen=True, slots=True)
class Covered:
    """Index rows as they are, without a look at their rows.

    Attributes:
        entries: Index rows in the order of the index.
        behind_seconds: How old the state that they show is, at most; 0 if it is that of now. Rows
            that changed since may be missing, or be shown as they were.
    """

    entries: list[IndexEntry]
    behind_seconds: float


Difference = Literal["missing", "orphaned", "different"]
"""A row without its index row; an index row without its row; both, but not the same."""


@dataclass(frozen=True, slots=True)
class IndexDifference:
    """One place where base and index don't agree."""

    kind: Difference
    key: tuple[Any, ...]
    primary_key: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a comparison of base and index, both ways in one snapshot, has found.

    Attributes:
        index: The index's name.
        rows: Rows of the base table that belong into the index.
        missing: How many of them have no index row. In a unique index that may be a row
            whose key another row holds.
        orphaned: How many index rows have no row, or one with another key.
        different: How many index rows carry other values than their row.
        samples: Some of the differences.
        pending: How many rows have changes that are still to be taken in; these were not compared.
    """

    index: str
    rows: int
    missing: int
    orphaned: int
    different: int
    samples: tuple[IndexDifference, ...]
    pending: int = 0

    @property
    def clean(self) -> bool:
        """Whether base and index agree."""
        return not (self.missing or self.orphaned or self.different)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep has found.

    Attributes:
        index: The index's name.
        orphaned: How many index rows led to no row, or to one with another key.
        removed: How many of them are gone.
    """

    index: str
    orphaned: int
    removed: int


@dataclass(frozen=True, slots=True)
class IndexConflict:
    """Two rows with one key, for which the building of a unique index has failed.

    Attributes:
        key: The values of the key by name, as JSON has them.
        primary_key: The row that has no index row.
        holder: The primary key of the row that has the key.
        found_at: When.
    """

    key: Mapping[str, Any]
    primary_key: Mapping[str, Any]
    holder: Mapping[str, Any]
    found_at: datetime


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an index is kept, and why that way.

    Attributes:
        mode: How it is kept.
        reason: What that means.
        chosen_because: Why that mode was chosen; None if it was declared.
    """

    mode: str
    reason: str
    chosen_because: str | None = None
