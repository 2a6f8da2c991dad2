"""What is found out about an index over shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from datapatterns.index_table.entries import IndexDifference


@dataclass(frozen=True, slots=True)
class ShardIndexReport:
    """What a comparison of an index over shards with its table has found, both ways.

    Attributes:
        index: The index's name.
        rows: Rows that belong into the index.
        missing: How many of them have no entry; they are not found. In a unique index that may
            be a row whose key another row has.
        different: How many entries carry other values than their row, which `IndexTable.keys`
            shows.
        orphaned: How many entries lead to no row. They do no harm, and are swept.
        undecided: How many could not be told, as somebody has held their keys all the while.
        mended: How many of all these have been mended, if that was asked for.
        samples: Some of the differences.
    """

    index: str
    rows: int
    missing: int = 0
    different: int = 0
    orphaned: int = 0
    undecided: int = 0
    mended: int = 0
    samples: tuple[IndexDifference, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether every row is found, with what its entry should carry."""
        return not (self.missing or self.different or self.undecided)


@dataclass(frozen=True, slots=True)
class ShardIndexStatus:
    """How an index over shards stands.

    Attributes:
        name: Its name.
        state: ``missing``, ``changed``, ``detached``, ``building``, ``built``, ``verifying``,
            ``ready``, ``failed`` or ``dropping``: where it is in the worst of these.
        shards: The same on each shard.
        rows_done: Rows from before that have been looked at.
        rows_expected: Of about how many, as far as somebody has begun.
        failure: Why it has failed.
        advice: What to do; None if nothing.
    """

    name: str
    state: str
    shards: Mapping[str, str]
    rows_done: int
    rows_expected: int
    failure: str | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class ShardIndexConflict:
    """Two rows have one key of a unique index, so it could not be built.

    Attributes:
        index: The index's name.
        shard: Where the row is that has no entry.
        key: The key, by the names of the index's columns.
        row: The primary key of the row that has no entry.
        holder: That of the row that has it.
        found_at: When that was found.
    """

    index: str
    shard: str
    key: Mapping[str, Any]
    row: Mapping[str, Any]
    holder: Mapping[str, Any]
    found_at: datetime


@dataclass(frozen=True, slots=True)
class SweptEntries:
    """What was swept of an index over shards.

    Attributes:
        index: The index's name.
        orphaned: How many entries were found that lead to no row.
        removed: How many of them were removed; others were claimed meanwhile, or it was only asked.
        undecided: How many could not be told, as somebody has held their keys all the while.
    """

    index: str
    orphaned: int
    removed: int
    undecided: int
