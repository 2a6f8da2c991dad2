"""What a worker does besides moving projections on: bounded steps with pauses in between."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from sqlalchemy import Engine

from datapatterns.cache_aside import CacheRelay
from datapatterns.change_log import ChangeLog
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.cqrs import Message, Outbox, relay_messages
from datapatterns.event_sourcing import EventStore, publish_mark
from datapatterns.index_table import IndexWorker, ShardIndexes
from datapatterns.materialized_view import ViewWorker
from datapatterns.sharding import Move, Recovered, ShardCluster
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.transactions import fresh_reads, resuming, transaction

logger = logging.getLogger(__name__)

OLD_PREPARED_SECONDS: Final = 60.0
"""What is prepared for longer has been forgotten: it holds locks, and holds back VACUUM."""


class Loop(Protocol):
    """Something to be done again and again."""

    @property
    def name(self) -> str:
        """What logs call it."""
        ...

    def step(self) -> float:
        """Do a bounded piece of work, and return how many seconds to pause.

        What it raises is logged, and it is tried again after a growing pause.
        """
        ...


@runtime_checkable
class CancellableLoop(Loop, Protocol):
    """One whose steps can take long."""

    def interrupt(self) -> None:
        """Give up the step that is under way, in whatever thread; return soon."""
        ...


@dataclass(frozen=True, slots=True)
class MarkLoop:
    """Publishes the high-water mark, for readers of the published one.

    Attributes:
        store: Whose mark.
        engine: Leads to the primary.
        seconds: How long to pause in between; readers see events that much later, at most.
    """

    store: EventStore
    engine: Engine
    seconds: float = 0.1
    name: str = "publisher of the mark"

    def step(self) -> float:
        """Publish the mark once."""
        with transaction(
            self.engine.execution_options(isolation_level="READ COMMITTED"),
            attempted="publishing the mark",
        ) as conn:
            publish_mark(conn, self.store)
        return self.seconds


@dataclass(frozen=True, slots=True)
class RelayLoop:
    """Passes on the messages that projections have left in the outbox; see `relay_messages`.

    Attributes:
        engine: Where the outbox is.
        publish: Returns when a message is safe elsewhere.
        outbox: Of which schema.
        limit: How many messages one transaction takes.
        attempts_max: After so many a message is given up.
        seconds: How long to pause when there are none.
    """

    engine: Engine
    publish: Callable[[Message], object]
    outbox: Outbox | None = None
    limit: int = 100
    attempts_max: int | None = None
    seconds: float = 0.1
    name: str = "relay of messages"

    def step(self) -> float:
        """Pass on a batch of messages."""
        done = relay_messages(
            self.engine,
            self.publish,
            outbox=self.outbox,
            limit=self.limit,
            attempts_max=self.attempts_max,
        )
        return self.seconds if done.caught_up else 0.0


@dataclass(frozen=True, slots=True)
class ViewLoop:
    """Refreshes materialized views when they are due; several may share one worker.

    Attributes:
        worker: What `Views.worker` returned.
        engine: Where the views are.
    """

    worker: ViewWorker
    engine: Engine
    name: str = "refresher of views"

    def step(self) -> float:
        """Refresh what is most overdue."""
        return self.worker.step(self.engine).pause_seconds

    def interrupt(self) -> None:
        """Cancel the refreshes that are under way, also those of other loops of this worker."""
        self.worker.interrupt()


@dataclass(frozen=True, slots=True)
class IndexLoop:
    """Takes changes in for index tables of mode ``async``; several may run.

    Attributes:
        worker: What `Indexes.worker` returned.
        engine: Where the index tables are.
    """

    worker: IndexWorker
    engine: Engine
    name: str = "keeper of index tables"

    def step(self) -> float:
        """Take in what is pending for each."""
        return self.worker.step(self.engine)


@dataclass(slots=True)
class CacheRelayLoop:
    """Tells Redis of every invalidation that commits, for all caches that use it.

    Several may run; one leads, and another takes over when that one dies. Rows that every Redis
    has been told of are deleted on the way. It pauses for at least as long as a round took, so
    that it takes no more than half of a connection's time.

    Attributes:
        relay: What sends them.
        seconds_min: How long to pause while invalidations come.
        seconds_max: How long to pause at most when none has come for a while; so much later,
            what no writer has told Redis itself is told.
        tell_seconds: How often the observer is told what waits.
    """

    relay: CacheRelay
    seconds_min: float = 0.005
    seconds_max: float = 0.25
    tell_seconds: float = 10.0
    name: str = "relay of caches"
    clock: Clock = SYSTEM_CLOCK
    _pause: float = field(default=0.0, init=False, repr=False)
    _tell_at: float = field(default=0.0, init=False, repr=False)

    def step(self) -> float:
        """Send what has committed since the last round."""
        began = self.clock.monotonic()
        if began >= self._tell_at:
            self.relay.tell_lag()
            self._tell_at = began + self.tell_seconds
        report = self.relay.run()
        if not report.is_leading:
            return self.seconds_max
        grown = 2 * max(self._pause, self.seconds_min)
        self._pause = self.seconds_min if report.transactions else min(grown, self.seconds_max)
        return max(self._pause, self.clock.monotonic() - began)


@dataclass(frozen=True, slots=True)
class CollectLoop:
    """Deletes logged row changes that every consumer has taken in.

    Attributes:
        engine: Where the change log is.
        schema: Where the library's tables live.
        limit: How many rows of each log one transaction deletes.
        seconds: How long to pause when there are no more.
    """

    engine: Engine
    schema: str = DEFAULT_SCHEMA
    limit: int = 10_000
    seconds: float = 10.0
    name: str = "collector of logged changes"

    def step(self) -> float:
        """Delete a batch."""
        with fresh_reads(self.engine) as conn, resuming(conn, "collecting logged changes"):
            deleted = ChangeLog(self.schema).collect_garbage(conn, limit=self.limit)
        return self.seconds if deleted < self.limit else 0.0


@dataclass(frozen=True, slots=True)
class ShardRecoveryLoop:
    """Ends the transactions over several shards whose process died; several may run.

    Attributes:
        recover: What looks at all shards once, such as `ShardCluster.recover`.
        seconds: How long to pause after a round.
    """

    recover: Callable[[], Recovered]
    seconds: float = 30.0
    name: str = "recovery of transactions over shards"

    def step(self) -> float:
        """Look at all shards once; tell of what is left that somebody should look at."""
        done = self.recover()
        old = {name: age for name, age in done.waiting.items() if age > OLD_PREPARED_SECONDS}
        if old or done.foreign or done.denied or done.unreachable:
            known = {
                "old": old,
                "foreign": done.foreign,
                "denied": done.denied,
                "unreachable": done.unreachable,
            }
            logger.warning("transactions over shards are left prepared", extra=known)
        return self.seconds


@dataclass(frozen=True, slots=True)
class ShardIndexLoop:
    """Sweeps index tables over shards: what crashes leave behind costs look-ups time.

    Several may run. Each round reads all entries, of one index after the other.

    Attributes:
        cluster: The shards, with their index tables.
        seconds: How long to pause after a round.
    """

    cluster: ShardCluster
    seconds: float = 3_600.0
    name: str = "sweeper of indexes over shards"

    def step(self) -> float:
        """Sweep those that are read."""
        indexes = ShardIndexes.of(self.cluster)
        for one in indexes.status(self.cluster):
            if one.state != "ready":
                continue
            swept = indexes.sweep(self.cluster, [one.name])[one.name]
            if swept.orphaned or swept.undecided:
                known = {"removed": swept.removed, "undecided": swept.undecided}
                logger.info("index %s was swept", one.name, extra=known)
        return self.seconds


@dataclass(frozen=True, slots=True)
class ShardMoveLoop:
    """Takes up moves of buckets whose process died; several may run.

    Attributes:
        resume: What takes up all that nobody works at: `ShardCluster.finish_moves` for those that
            were about to be handed over, whose bucket may be nobody's; `ShardCluster.resume_moves`
            for all, which may copy for long, and as fast as it goes.
        seconds: How long to pause after a round.
    """

    resume: Callable[[], Sequence[Move]]
    seconds: float = 5.0
    name: str = "moves of buckets"

    def step(self) -> float:
        """Take up what nobody works at."""
        for move in self.resume():
            known = {"group": move.group, "bucket": move.bucket, "state": move.state}
            logger.info("a move of a bucket whose worker died has ended", extra=known)
        return self.seconds
