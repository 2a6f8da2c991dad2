"""The moment at which a bucket stops being the source's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MoveBlockedError
from datapatterns.failpoints import failpoint
from datapatterns.sharding.moving.comparing import compare, compare_changed
from datapatterns.sharding.moving.copying import TablePair, places_of
from datapatterns.sharding.moving.draining import (
    Batch,
    apply_dirty,
    apply_last_dirty,
    drain,
    is_steady,
)
from datapatterns.sharding.moving.holding import Held, Side, is_blocked
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sharding.moving.receiving import Receiving
from datapatterns.sharding.moving.watching import TouchedError, Watch

ROWS_COMPARED_AT_ONCE = 500
"""Larger buckets are compared before the cut, and in it only what has changed since."""

_TRIES = 120
_LOCK_MS = (50, 100, 200, 500)
_ROUNDS_MAX = 20


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut did.

    Attributes:
        began: When writers began to wait, by the clock that only grows.
        rows: How many rows both shards were found to hold, then or a moment before.
        left: What the bucket is on the source now.
    """

    began: float
    rows: int
    left: Held


def cut(  # noqa: PLR0913 -- the two sides, and how to go about it, by name
    source: Side,
    target: Side,
    tables: Sequence[TablePair],
    *,
    rows: int,
    watch: Watch,
    pace: Pace,
    receiving: Receiving,
) -> Cut:
    """Let the source give the bucket up, when the target has all of it.

    Args:
        source: The shard that has the bucket.
        target: The shard that gets it.
        tables: The tables of the group.
        rows: About how many rows there are.
        watch: Looks at tables and triggers.
        pace: How to wait.
        receiving: How the target takes rows in.

    Raises:
        CommitUnansweredError: Nobody knows whether it is done; resume the move.
        MoveBlockedError: A transaction has not let go of the bucket for long.
        MoveMismatchError: The shards hold different rows; nothing has happened.
        MoveRefusedError: The tables have changed since the copy.
        MoveTakenOverError: Another worker has taken over.
    """
    is_large = rows > ROWS_COMPARED_AT_ONCE and receiving.compares_changed
    catch_up: Callable[[], object] = partial(receiving.drain, source, target, tables, pace=pace)
    if is_large:
        catch_up = partial(_catch_up_compared, source, target, tables, pace)
    known, is_settled = None, False
    last: Exception | None = None
    for attempt in range(_TRIES):
        try:
            if is_settled:
                catch_up()
            else:
                watch.settle()
                if is_large:
                    known = _compare_before(source, target, tables, pace)
                    catch_up()
                is_settled = True
            attempted = _Attempt(source, target, tables, watch, pace, receiving, known)
            return attempted.run(lock_ms=_LOCK_MS[min(attempt, len(_LOCK_MS) - 1)])
        except TouchedError as error:
            # Rows may have changed that nobody has noted.
            is_settled, last = False, error
        except DBAPIError as error:
            if not is_blocked(error):
                raise
            last = error
        # Whoever queued behind goes on; what they write is brought over before the next try.
        pace.back_off(attempt)
    raise MoveBlockedError(source.shard, f"bucket {source.bucket}") from last


def _compare_before(source: Side, target: Side, tables: Sequence[TablePair], pace: Pace) -> int:
    """Compare all rows as of one moment before anybody has to wait; return how many there are.

    From then on, only what changes has to be compared.
    """
    with source.transaction("owned", snapshot=places_of(tables)):
        apply_dirty(source, target, tables, pace=pace, limit=None)
        with target.transaction("incoming"):
            return compare(source, target, tables)


def _catch_up_compared(source: Side, target: Side, tables: Sequence[TablePair], pace: Pace) -> None:
    """Bring over what has changed since, and compare that, until few rows are left for the cut."""

    def verify(batch: Batch) -> None:
        with target.transaction("incoming"):
            compare_changed(source, target, batch)

    before = 0
    for _ in range(_ROUNDS_MAX):
        keys = drain(source, target, tables, pace=pace, verify=verify)
        if is_steady(keys, before):
            return
        before = keys


@dataclass(frozen=True, slots=True)
class _Attempt:
    source: Side
    target: Side
    tables: Sequence[TablePair]
    watch: Watch
    pace: Pace
    receiving: Receiving
    known: int | None

    def run(self, *, lock_ms: int) -> Cut:
        source = self.source
        with source.transaction("owned", lock_ms=lock_ms, hurry=True):
            if self.receiving.compares_changed:
                began, rows = self._at_once(lock_ms=lock_ms)
            else:
                began, rows = self._one_after_the_other()
            # The target has committed: now, and not before, the source may let go.
            left = source.become("moved", was="owned")
            failpoint("move.cut-written")
        return Cut(began, rows, left)

    def _at_once(self, *, lock_ms: int) -> tuple[float, int]:
        """Bring the rest over and compare it, in a transaction that is there when all wait."""
        source, target = self.source, self.target
        with target.transaction("incoming", as_mover=True, lock_ms=lock_ms, hurry=True):
            self.watch.hold(source, target)
            self.watch.look_again()
            began = self.pace.clock.monotonic()
            source.fence()
            batch = apply_last_dirty(source, target, self.tables, pace=self.pace)
            failpoint("move.drained")
            if self.known is None:
                return began, compare(source, target, self.tables)
            compare_changed(source, target, batch)
            return began, self.known

    def _one_after_the_other(self) -> tuple[float, int]:
        """Bring the rest over in transactions of its own, then compare all."""
        source, target = self.source, self.target
        self.watch.hold(source)
        began = self.pace.clock.monotonic()
        source.fence()
        while self.receiving.apply_dirty(source, target, self.tables, pace=self.pace):
            pass
        failpoint("move.drained")
        with target.transaction("incoming"):
            self.watch.look_again()
            return began, compare(source, target, self.tables)
