"""Loops around the bounded steps of the patterns: a worker that runs until it is told to stop."""

from datapatterns.runtime.composing import HowToWork, index_loops, view_loops, worker_for
from datapatterns.runtime.loops import (
    CacheRelayLoop,
    CancellableLoop,
    CollectLoop,
    IndexLoop,
    Loop,
    MarkLoop,
    RelayLoop,
    ShardIndexLoop,
    ShardMoveLoop,
    ShardRecoveryLoop,
    ViewLoop,
)
from datapatterns.runtime.signals import stopped_by_signals
from datapatterns.runtime.worker import Worker, WorkerTotals

__all__ = [
    "CacheRelayLoop",
    "CancellableLoop",
    "CollectLoop",
    "HowToWork",
    "IndexLoop",
    "Loop",
    "MarkLoop",
    "RelayLoop",
    "ShardIndexLoop",
    "ShardMoveLoop",
    "ShardRecoveryLoop",
    "ViewLoop",
    "Worker",
    "WorkerTotals",
    "index_loops",
    "stopped_by_signals",
    "view_loops",
    "worker_for",
]
