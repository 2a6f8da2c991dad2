"""Index tables: find rows by something other than their primary key, and never miss one."""

from datapatterns.index_table.entries import (
    BackfillProgress,
    Explanation,
    IndexDifference,
    IndexEntry,
    Match,
    VerifyReport,
)
from datapatterns.index_table.index import IndexTable

__all__ = [
    "BackfillProgress",
    "Explanation",
    "IndexDifference",
    "IndexEntry",
    "IndexTable",
    "Match",
    "VerifyReport",
]
