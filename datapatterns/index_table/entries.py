"""What index tables answer with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

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
    """

    index: str
    rows: int
    missing: int
    orphaned: int
    different: int
    samples: tuple[IndexDifference, ...]

    @property
    def clean(self) -> bool:
        """Whether base and index agree."""
        return not (self.missing or self.orphaned or self.different)


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
