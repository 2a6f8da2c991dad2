"""Transactions that write to several shards and happen on all of them, or on none."""

from datapatterns.sharding.atomic.recovering import Recovered, Recovery
from datapatterns.sharding.atomic.work import AtomicWork

__all__ = ["AtomicWork", "Recovered", "Recovery"]
