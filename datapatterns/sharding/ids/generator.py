"""Make ids in this process."""

import os
from collections.abc import Callable
from threading import Lock
from uuid import UUID, uuid4
from weakref import WeakSet

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import BucketCountError, CommitUnansweredError, SettingsError
from datapatterns.sharding.ids.layout import BUCKETS_MAX, MS_MAX, PER_MS_MAX, IdParts, ms_at
from datapatterns.sharding.ids.leasing import Span, SpanLeases
from datapatterns.sharding.maps.shard_map import ShardMap
from datapatterns.sharding.strategies.strategy import Key
from datapatterns.sql.metadata import DEFAULT_SCHEMA

_HELD_SECONDS = 60.0
_ASKED_AGAIN_MS = 1000


class IdGenerator:
    """Makes ids that no other process makes, without asking anybody for each.

    An id is a positive ``bigint``, its bits are, from the highest: 40 of the millisecond, 13 of
    the bucket, 6 of the worker, 4 of a counter. So ids sort by the time they were made, as far as
    clocks agree; those of one bucket that this process makes always ascend. A worker number and
    a span of milliseconds are leased from the control database every few seconds; while that is
    away, ids go on until the span ends. Safe among threads, and after a fork.

    Args:
        control: The control database.
        current_map: Returns the group's map as of now: which bucket holds a key may change.
        span_seconds: For how long ids can be made without the control database, and how far ahead
            of the clock those may be that follow a crash.
        clock: Tells the time that goes into ids.
        schema: Where the library's tables live.

    Raises:
        BucketCountError: There are more buckets than an id has place for.
    """

    def __init__(
        self,
        control: Engine,
        current_map: Callable[[], ShardMap],
        *,
        span_seconds: float = 10.0,
        clock: Clock = SYSTEM_CLOCK,
        schema: str = DEFAULT_SCHEMA,
    ) -> None:
        first = current_map()
        declared = len(first.owners) - len(first.parents)
        if declared > BUCKETS_MAX:
            raise BucketCountError(
                declared, needed=f"an id has place for {BUCKETS_MAX:,}; use fewer"
            )
        if not 0 < span_seconds <= _HELD_SECONDS:
            raise SettingsError("span_seconds", f"{span_seconds!r} is not within (0, 60]")
        span_ms = max(2, int(span_seconds * 1000))
        self._leases = SpanLeases(control, span_ms, 2 * _HELD_SECONDS, schema)
        self._current_map = current_map
        self._clock = clock
        self._span: Span | None = None
        self.begin_anew()
        _instances.add(self)

    def next(self, key: Key) -> int:
        """Return a new id for a row with this shard key.

        Raises:
            CommitUnansweredError: The control database broke off while it was asked for a span.
            IdWorkersTakenError: Sixty-four other processes make ids.
            OperationalError: The span is used up, and the control database does not answer.
            UnroutableKeyError: No bucket holds such a key.
        """
        shard_map = self._current_map()
        bucket = shard_map.strategy.bucket(key)
        # Of many buckets that were split off, the last have no place in an id. What they were split
        # off from has, and leads to them.
        while bucket >= BUCKETS_MAX:
            bucket = shard_map.parents[bucket]
        return self.next_in(bucket)

    def next_in(self, bucket: int) -> int:
        """Return a new id for a row of this bucket.

        Raises:
            Exception: The errors of `next`.
            ValueError: There is no such bucket.
        """
        if not 0 <= bucket < BUCKETS_MAX:
            raise ValueError(f"bucket {bucket} has no place in an id")
        with self._lock:
            ms, counter = self._drawn(bucket)
            self._last[bucket] = ms, counter
            assert self._span is not None
            return IdParts(ms, bucket, self._span.worker, counter).packed()

    def close(self) -> None:
        """Let another process have the worker number at once."""
        with self._lock:
            if self._span is not None:
                self._leases.release(self._holder)
            self._forget()

    def _drawn(self, bucket: int) -> tuple[int, int]:
        now_ms = ms_at(self._clock.now())
        ms, counter = self._after(bucket, now_ms)
        # Before it is leased: nobody could go on with a number that was leased for such a time.
        _refuse_late(ms)
        if self._span is None or ms > self._renewed_from_ms:
            self._renew(ms)
            # The span may be another worker's: it begins above what was drawn, or anywhere.
            ms, counter = self._after(bucket, now_ms)
            _refuse_late(ms)
        return ms, counter

    def _after(self, bucket: int, now_ms: int) -> tuple[int, int]:
        """Return the millisecond of the next id of ``bucket``, and which one it is."""
        last_ms, counter = self._last.get(bucket, (-1, 0))
        begins_ms = 0 if self._span is None else self._span.after_ms + 1
        ms = max(now_ms, begins_ms, last_ms)
        if ms > last_ms:
            return ms, 0
        # The clock stands still, or went back; or it is busy: time is borrowed from the future.
        return (ms, counter + 1) if counter + 1 < PER_MS_MAX else (ms + 1, 0)

    def _renew(self, ms: int) -> None:
        """Lease more in good time; go on without as long as there is some left."""
        held = self._span
        try:
            found = self._leases.take(self._holder, ms)
        except (OperationalError, CommitUnansweredError):
            if held is None or ms > held.until_ms:
                raise
            self._renewed_from_ms = min(ms + _ASKED_AGAIN_MS, held.until_ms)
            return
        if held is not None and (found.worker, found.after_ms) == (held.worker, held.until_ms):
            # Nobody had the number meanwhile, or it would begin later: it is one span.
            found = Span(found.worker, held.after_ms, found.until_ms)
        self._span = found
        self._renewed_from_ms = found.until_ms - self._leases.span_ms // 2

    def begin_anew(self) -> None:
        """Make ids as another maker: a child that went on would make its parent's ids."""
        self._holder: UUID = uuid4()
        self._lock = Lock()
        self._forget()

    def _forget(self) -> None:
        self._span = None
        self._renewed_from_ms = 0
        self._last: dict[int, tuple[int, int]] = {}


def _refuse_late(ms: int) -> None:
    if ms > MS_MAX:
        raise OverflowError("the milliseconds of ids are used up: is the clock right?")


_instances: WeakSet[IdGenerator] = WeakSet()


def _leave_all_to_parent() -> None:
    for ids in _instances:
        ids.begin_anew()


# At once, while the child has one thread: two that came first together could mix their spans, or
# wait for a lock that a thread of the parent's has.
os.register_at_fork(after_in_child=_leave_all_to_parent)
