"""Index tables: find rows by something other than their primary key, and never miss one."""

from datapatterns.index_table.entries import (
    BackfillProgress,
    CaughtUp,
    Covered,
    Explanation,
    IndexConflict,
    IndexDifference,
    IndexEntry,
    IndexLag,
    Match,
    SweepReport,
    VerifyReport,
)
from datapatterns.index_table.index import IndexTable
from datapatterns.index_table.indexes import Indexes, IndexReport
from datapatterns.index_table.over_shards.backfilling import ShardProgress
from datapatterns.index_table.over_shards.building import BuildPace
from datapatterns.index_table.over_shards.reports import (
    ShardIndexConflict,
    ShardIndexReport,
    ShardIndexStatus,
    SweptEntries,
)
from datapatterns.index_table.over_shards.shard_indexes import ShardIndexes
from datapatterns.index_table.working import IndexWorker

__all__ = [
    "BackfillProgress",
    "BuildPace",
    "CaughtUp",
    "Covered",
    "Explanation",
    "IndexConflict",
    "IndexDifference",
    "IndexEntry",
    "IndexLag",
    "IndexReport",
    "IndexTable",
    "IndexWorker",
    "Indexes",
    "Match",
    "ShardIndexConflict",
    "ShardIndexReport",
    "ShardIndexStatus",
    "ShardIndexes",
    "ShardProgress",
    "SweepReport",
    "SweptEntries",
    "VerifyReport",
]
