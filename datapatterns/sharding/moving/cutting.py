"""The moment at which a bucket stops being the source's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from psycopg import sql
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import MoveBlockedError
from datapatterns.failpoints import failpoint
from datapatterns.sharding.moving.comparing import compare, compare_changed
from datapatterns.sharding.moving.copying import TablePair
from datapatterns.sharding.moving.draining import Batch, apply_dirty
from datapatterns.sharding.moving.holding import Side, is_blocked
from datapatterns.sharding.moving.pacing import Pace
from datapatterns.sharding.moving.receiving import Receiving
from datapatterns.sql.composing import execute

ROWS_COMPARED_AT_ONCE = 500
"""Larger buckets are compared before the cut, and in it only what has changed since."""

_TRIES = 120
_LOCK_MS = (50, 100, 200, 500)
# Should this process be stopped while others wait for it, the server ends the transaction.
_HURRY = sql.SQL("SET LOCAL idle_in_transaction_session_timeout = '10s'")


@dataclass(frozen=True, slots=True)
class Cut:
    """What a cut did.

    Attributes:
        began: When writers began to wait, by the clock that only grows.
        rows: How many rows both shards were found to hold.
    """

    began: float
    rows: int


def cut(  # noqa: PLR0913 -- the two sides, and how to go about it, by name
    source: Side,
    target: Side,
    tables: Sequence[TablePair],
    *,
    rows: int,
    check: Callable[[], None],
    pace: Pace,
    receiving: Receiving,
) -> Cut:
    """Let the source give the bucket up, when the target has all of it.

    Args:
        source: The shard that has the bucket.
        target: The shard that gets it.
        tables: The tables of the group.
        rows: About how many rows there are.
        check: Raises if the tables have changed since the copy.
        pace: How to wait.
        receiving: How the target takes rows in.

    Raises:
        CommitUnansweredError: Nobody knows whether it is done; resume the move.
        MoveBlockedError: A transaction has not let go of the bucket for long.
        MoveMismatchError: The shards hold different rows; nothing has happened.
        MoveTakenOverError: Another worker has taken over.
    """
    known = None
    if rows > ROWS_COMPARED_AT_ONCE and receiving.compares_changed:
        known = _compare_before(source, target, tables, pace)
    changed: list[Batch] = []
    attempt = 0
    while True:
        lock_ms = _LOCK_MS[min(attempt, len(_LOCK_MS) - 1)]
        try:
            attempted = _Attempt(source, target, tables, check, pace, receiving, known, changed)
            return attempted.run(lock_ms=lock_ms)
        except DBAPIError as error:
            if not is_blocked(error):
                raise
            if attempt == _TRIES:
                raise MoveBlockedError(source.shard, f"bucket {source.bucket}") from error
        # Whoever queued behind goes on; what they write is brought over before the next try.
        pace.back_off(attempt)
        with source.transaction("owned", snapshot=True):
            changed.append(receiving.apply_dirty(source, target, tables, pace=pace))
        attempt += 1


def _compare_before(source: Side, target: Side, tables: Sequence[TablePair], pace: Pace) -> int:
    """Compare all rows as of one moment before anybody has to wait; return how many there are.

    From then on, only what changes has to be compared.
    """
    with source.transaction("owned", snapshot=True):
        while apply_dirty(source, target, tables, pace=pace):
            pass
        with target.transaction("incoming"):
            return compare(source, target, tables)


@dataclass(frozen=True, slots=True)
class _Attempt:
    source: Side
    target: Side
    tables: Sequence[TablePair]
    check: Callable[[], None]
    pace: Pace
    receiving: Receiving
    known: int | None
    changed: list[Batch]

    def run(self, *, lock_ms: int) -> Cut:
        source, target = self.source, self.target
        with source.transaction("owned", lock_ms=lock_ms) as conn:
            execute(conn, _HURRY)
            began = self.pace.clock.monotonic()
            source.fence()
            while batch := self.receiving.apply_dirty(source, target, self.tables, pace=self.pace):
                self.changed.append(batch)
            failpoint("move.drained")
            with target.transaction("incoming"):
                self.check()
                if self.known is None:
                    rows = compare(source, target, self.tables)
                else:
                    rows = self.known
                    compare_changed(source, target, self.changed)
            source.become("moved", was="owned")
            failpoint("move.cut-written")
        return Cut(began, rows)
