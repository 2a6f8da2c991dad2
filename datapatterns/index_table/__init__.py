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
from datapatterns.index_table.indexes import Indexes, IndexReport
from datapatterns.index_table.over_shards.shard_indexes import ShardIndexes

__all__ = [
    "BackfillProgress",
    "Explanation",
    "IndexDifference",
    "IndexEntry",
    "IndexReport",
    "IndexTable",
    "Indexes",
    "Match",
    "ShardIndexes",
    "VerifyReport",
]
