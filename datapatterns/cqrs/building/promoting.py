"""Let a version that has been built beside the live one take its place, and go back.

Readers never see an error, an empty table, or a step back: the live version is held at a barrier
until the new one shows as much, and the names are swapped in one short transaction.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, and_, func, select, update
from sqlalchemy.exc import DBAPIError

from datapatterns.clock import Clock
from datapatterns.cqrs.building.old_snapshots import SnapshotHolder, read_holders, still_there
from datapatterns.cqrs.building.swapping import FOLLOWING, MovedOnError, Swap
from datapatterns.cqrs.building.version_records import (
    VersionRecord,
    read_segments,
    read_versions,
)
from datapatterns.cqrs.running.bells import ring
from datapatterns.cqrs.running.pacing import POLL_SECONDS_MAX, POLL_SECONDS_MIN
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.errors import (
    PromotionRefusedError,
    PromotionTimeoutError,
    StandbyBehindError,
)
from datapatterns.event_sourcing.events import Position
from datapatterns.failpoints import failpoint
from datapatterns.sql.server import library_errors
from datapatterns.transactions import fresh_reads, reading, resuming

BARRIER_SECONDS: Final = 10.0
"""So long the live version is held at most by a promoter that has died."""

CatchUpTo = Callable[[Position, float], None]
"""Brings the new version to a position within so many seconds, or waits for those who do."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take.

    Attributes:
        timeout_seconds: All of it.
        lock_seconds: How long readers may be made to wait for a lock, at each attempt.
    """

    timeout_seconds: float
    lock_seconds: float


@dataclass(frozen=True, slots=True)
class Promotion:
    """Puts version ``version`` of the projection ``name`` in the place of the live one.

    Attributes:
        exact: At one position of both, for a projection that sends messages.
        older: It may show less than readers have seen.
        catch_up: Moves the new version on; None if that is left to its workers.
    """

    schema: str
    name: str
    version: int
    exact: bool
    older: bool
    patience: Patience
    clock: Clock
    catch_up: CatchUpTo | None

    def run(self, engine: Engine) -> bool:
        """Return whether anything had to be done, once the version is live.

        Raises:
            CommitUnansweredError: The connection broke during the COMMIT; do it again.
            MissingRightsError: The role may not do it; it takes the owner of the tables.
            PromotionRefusedError: It cannot be done.
            PromotionTimeoutError: It could not be done in time.
            ReadModelInUseError: Something is bound to a table.
            StandbyBehindError: The version is older than what was shown.
        """
        deadline = self.clock.monotonic() + self.patience.timeout_seconds
        with library_errors("the database"), fresh_reads(engine) as conn:
            swap = self._swap(conn)
            if swap is None:
                return False
            with reading(conn):
                swap.check(conn)
            pause = POLL_SECONDS_MIN
            while True:
                # Long ones before the barrier, which stops the live version.
                self._outlast(conn, self._holders(conn), deadline)
                if self._attempt(conn, swap, deadline):
                    ring(self.schema, self.name)
                    return True
                if self.clock.monotonic() >= deadline:
                    with reading(conn):
                        users = swap.users(conn)
                    raise self._late("those who read or write its tables for long", users)
                self.clock.sleep(pause)
                pause = min(2 * pause, 4 * POLL_SECONDS_MAX)

    def plan(self, conn: Connection) -> VersionRecord | None:
        """Return the version that would be replaced, if it can be; None if this one is live.

        Raises:
            PromotionRefusedError: It cannot be done.
            ReadModelInUseError: Something is bound to a table.
        """
        swap = self._swap(conn)
        if swap is None:
            return None
        with reading(conn):
            swap.check(conn)
        return swap.old

    def _swap(self, conn: Connection) -> Swap | None:
        with reading(conn):
            known = read_versions(conn, self._tables, self.name)
        new = known.get(self.version)
        if new is not None and new.status == "live":
            return None
        if new is None or new.status not in FOLLOWING:
            stands = "was never built" if new is None else f"is {new.status}"
            raise self._refused(f"it {stands}, so there is nothing to promote; rebuild it first")
        live = [record for record in known.values() if record.status == "live"]
        if not live:
            raise self._refused("there is no live version whose place it could take; rebuild it")
        if live[0].mode != "async":
            raise self._refused(
                f"version {live[0].version} is moved on inline, by appends; make it async first"
            )
        return Swap(self.schema, live[0], new, self.exact, self.older, self.patience.lock_seconds)

    def _attempt(self, conn: Connection, swap: Swap, deadline: float) -> bool:
        with self._barred(conn, swap) as barrier:
            failpoint("promote.barred")
            self._reach(conn, swap, barrier, deadline)
            # Who begins to read from now on finds all that anybody has seen.
            try:
                self._outlast(conn, self._holders(conn), self._soon(deadline))
            except PromotionTimeoutError:
                if self.clock.monotonic() >= deadline:
                    raise
                return False  # it is waited for without a barrier
            try:
                with resuming(conn, self._this):
                    swap.run(conn)
            except MovedOnError:
                return False
            except DBAPIError as error:
                if isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                    return False
                raise
        failpoint("promote.committed")
        return True

    @contextmanager
    def _barred(self, conn: Connection, swap: Swap) -> Iterator[Position]:
        held = [swap.old.version, *([swap.new.version] if self.exact else [])]
        barrier = self._set_barrier(conn, held)
        try:
            yield barrier
        finally:
            # The swap has lifted it already. If this cannot be done, it expires.
            if not conn.invalidated:
                with resuming(conn, self._this):
                    self._lift(conn, held)

    def _set_barrier(self, conn: Connection, held: list[int]) -> Position:
        if self.older:
            return Position(0)
        shards = self._tables.shards
        mine = and_(shards.c.name == self.name, shards.c.version.in_(held))
        with resuming(conn, self._this):
            rows = conn.execute(
                select(shards.c.version, shards.c.position)
                .where(mine)
                .order_by(shards.c.version, shards.c.shard)
                .with_for_update()
            ).all()
            barrier = Position(max(row.position for row in rows))
            conn.execute(
                update(shards)
                .where(mine)
                .values(
                    barrier=barrier,
                    barrier_until=func.clock_timestamp() + timedelta(seconds=BARRIER_SECONDS),
                )
            )
        return barrier

    def _lift(self, conn: Connection, held: list[int]) -> None:
        shards = self._tables.shards
        conn.execute(
            update(shards)
            .where(
                shards.c.name == self.name,
                shards.c.version.in_(held),
                shards.c.barrier.is_not(None),
            )
            .values(barrier=None, barrier_until=None)
        )

    def _reach(self, conn: Connection, swap: Swap, barrier: Position, deadline: float) -> None:
        if self.older:
            return
        soon = self._soon(deadline)
        if self.catch_up is not None and self._last(conn, swap.new) < barrier:
            self.catch_up(barrier, max(0.0, soon - self.clock.monotonic()))
        for record in (swap.new, swap.old) if self.exact else (swap.new,):
            while (position := self._last(conn, record)) < barrier:
                if self.clock.monotonic() >= soon:
                    raise StandbyBehindError(
                        self.name,
                        record.version,
                        position=position,
                        shown=barrier,
                        exact=self.exact,
                    )
                self.clock.sleep(POLL_SECONDS_MAX)

    def _last(self, conn: Connection, record: VersionRecord) -> Position:
        with reading(conn):
            segments = read_segments(conn, self._tables, record.name, record.version)
        return min((segment.position for segment in segments), default=Position(0))

    def _holders(self, conn: Connection) -> frozenset[SnapshotHolder]:
        with reading(conn):
            return read_holders(conn)

    def _outlast(self, conn: Connection, old: frozenset[SnapshotHolder], deadline: float) -> None:
        pause = POLL_SECONDS_MIN
        while left := still_there(old, self._holders(conn)):
            if self.clock.monotonic() >= deadline:
                pids = [holder.pid for holder in left]
                raise self._late("transactions whose snapshot is older than its rows", pids)
            self.clock.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS_MAX)

    def _soon(self, deadline: float) -> float:
        # Before the barrier has expired, or all would be in vain.
        return min(deadline, self.clock.monotonic() + BARRIER_SECONDS / 2)

    def _late(self, waited_for: str, pids: list[int] | None = None) -> PromotionTimeoutError:
        return PromotionTimeoutError(
            self.name, self.version, waited_for=waited_for, pids=pids or []
        )

    def _refused(self, advice: str) -> PromotionRefusedError:
        return PromotionRefusedError(self.name, self.version, advice)

    @property
    def _this(self) -> str:
        return f"the promotion of version {self.version} of projection {self.name}"

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.schema)
