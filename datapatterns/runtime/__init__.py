"""Loops around the bounded steps of the patterns: a worker that runs until it is told to stop."""

from datapatterns.runtime.composing import HowToWork, worker_for
from datapatterns.runtime.loops import Loop, MarkLoop, RelayLoop
from datapatterns.runtime.signals import stopped_by_signals
from datapatterns.runtime.worker import Worker, WorkerTotals

__all__ = [
    "HowToWork",
    "Loop",
    "MarkLoop",
    "RelayLoop",
    "Worker",
    "WorkerTotals",
    "stopped_by_signals",
    "worker_for",
]
