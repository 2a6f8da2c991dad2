"""Give a version more or fewer segments while workers move it on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, and_, func, or_, update

from datapatterns.clock import Clock
from datapatterns.cqrs.definition import AnyProjection
from datapatterns.cqrs.running.advancing import BarrierError
from datapatterns.cqrs.running.leasing import Lease, held, release, take_where
from datapatterns.cqrs.running.pacing import PAUSE_SECONDS_MIN, next_pause
from datapatterns.cqrs.running.runners import LeaseTerms, Runner
from datapatterns.cqrs.running.segments import WHOLE, Segment
from datapatterns.cqrs.running.splitting import (
    MASK_MAX,
    SegmentPlace,
    lock_segments,
    merge_segments,
    split_segments,
)
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.errors import LeaseLostError, ReadModelBehindError, SegmentError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import fresh_reads, resuming

SEGMENTS_MAX: Final = 1_024
"""More than that are more work to share out than to do."""


@dataclass(frozen=True, slots=True)
class Resegmenting:
    """Splits and merges the segments of one version."""

    store: EventStore
    projection: type[AnyProjection]
    runner_of: Callable[[], Runner]
    terms: LeaseTerms
    clock: Clock
    check: Callable[[Connection], None]
    timeout_seconds: float

    def split(self, engine: Engine, shard: int | None) -> int:
        """Do what `Projections.split` promises."""
        with fresh_reads(engine) as conn:
            self._check(conn)
            with resuming(conn, self._this):
                there = [one.segment for one in self._lock(conn)]
                segment = _widest(there) if shard is None else self._find(there, shard)
                self._split(conn, [segment], 2 * segment.mask + 1)
                return len(there) + 1

    def merge(self, engine: Engine, shard: int | None) -> int:
        """Do what `Projections.merge` promises."""
        with fresh_reads(engine) as conn:
            with resuming(conn, self._this):
                there = [one.segment for one in self._lock(conn)]
                segment = _narrowest(there) if shard is None else self._find(there, shard)
                if segment == WHOLE:
                    raise SegmentError(self.projection.name, "there is one, which owns all keys")
            mask = segment.mask // 2
            self._gather(conn, Segment(segment.shard & mask, mask))
            return len(self._now(conn))

    def split_into(self, engine: Engine, count: int) -> int:
        """Do what `Projections.split_into` promises."""
        if not 1 <= count <= SEGMENTS_MAX or count & (count - 1):
            raise SegmentError(
                self.projection.name,
                f"{count} is not a power of two up to {SEGMENTS_MAX}; ask for 1, 2, 4, 8 and so on",
            )
        mask = count - 1
        with fresh_reads(engine) as conn:
            if count > 1:
                self._check(conn)
            with resuming(conn, self._this):
                there = [one.segment for one in self._lock(conn)]
                self._split(conn, [one for one in there if one.mask < mask], mask)
            for shard in range(count):
                self._gather(conn, Segment(shard, mask))
            return len(self._now(conn))

    def _split(self, conn: Connection, segments: Sequence[Segment], mask: int) -> None:
        if mask > MASK_MAX:
            raise SegmentError(
                self.projection.name,
                f"there are {MASK_MAX + 1} at most, for keys are told apart by so much of a hash",
            )
        split_segments(conn, self._tables, self.projection, segments, mask)

    def _gather(self, conn: Connection, whole: Segment) -> None:
        """Make one of all segments whose keys are among those of ``whole``."""
        deadline = self.clock.monotonic() + self.timeout_seconds
        leases: list[Lease] = []
        try:
            # Held until they are merged: released, workers would move them apart again.
            while leases := self._merge_or_take(conn, whole):
                try:
                    self._bring_level(conn, leases, deadline)
                except (BarrierError, LeaseLostError):
                    if self.clock.monotonic() >= deadline:
                        raise
        finally:
            if leases and not conn.invalidated:
                self._let_go(conn, leases)

    def _merge_or_take(self, conn: Connection, whole: Segment) -> list[Lease]:
        """Merge parts that are level; else take them all, held at the furthest of them."""
        with resuming(conn, self._this):
            parts = [one for one in self._lock(conn) if _is_part(one.segment, whole)]
            if len(parts) <= 1:
                return []
            furthest = max(one.position for one in parts)
            if min(one.position for one in parts) == furthest:
                segments = [one.segment for one in parts]
                merge_segments(conn, self._tables, self.projection, segments, whole)
                return []
            leases = self._take(conn, parts, furthest)
        failpoint("segments.held-level")
        return leases

    def _take(
        self, conn: Connection, parts: Sequence[SegmentPlace], barrier: Position
    ) -> list[Lease]:
        shards = self._tables.shards
        these = and_(
            shards.c.name == self.projection.name,
            shards.c.version == self.projection.version,
            shards.c.shard.in_([one.segment.shard for one in parts]),
        )
        until = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, self.terms.seconds)
        conn.execute(update(shards).where(these).values(barrier=barrier, barrier_until=until))
        return take_where(
            conn, self._tables, these, owner=self.terms.owner, seconds=self.terms.seconds
        )

    def _bring_level(self, conn: Connection, leases: list[Lease], deadline: float) -> None:
        runner = self.runner_of()
        level = max(lease.position for lease in leases)
        for place, lease in enumerate(leases):
            latest, pause = runner.begin(conn, lease), PAUSE_SECONDS_MIN
            while latest.position < level:
                before = latest.position
                latest, done = runner.page(conn, latest)
                leases[place] = latest
                if self.clock.monotonic() >= deadline:
                    raise ReadModelBehindError(
                        self.projection.name, position=latest.position, token=level
                    )
                if latest.position == before:
                    pause = next_pause(pause, moved=done.events > 0)
                    self.clock.sleep(pause)

    def _let_go(self, conn: Connection, leases: Sequence[Lease]) -> None:
        shards = self._tables.shards
        with resuming(conn, self._this):
            conn.execute(
                update(shards)
                .where(or_(*(held(self._tables, lease) for lease in leases)))
                .values(barrier=None, barrier_until=None)
            )
            for lease in leases:
                release(conn, self._tables, lease)

    def _now(self, conn: Connection) -> list[SegmentPlace]:
        with resuming(conn, self._this):
            return self._lock(conn)

    def _lock(self, conn: Connection) -> list[SegmentPlace]:
        return lock_segments(conn, self._tables, self.projection, owner=self.terms.owner)

    def _check(self, conn: Connection) -> None:
        with resuming(conn, self._this):
            self.check(conn)

    def _find(self, there: Sequence[Segment], shard: int) -> Segment:
        found = [segment for segment in there if segment.shard == shard]
        if not found:
            known = ", ".join(str(segment.shard) for segment in there)
            raise SegmentError(self.projection.name, f"there is no {shard}, only {known}")
        return found[0]

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _this(self) -> str:
        return f"the segments of projection {self.projection.name}"


def _is_part(segment: Segment, whole: Segment) -> bool:
    return segment.mask >= whole.mask and segment.shard & whole.mask == whole.shard


def _widest(segments: Sequence[Segment]) -> Segment:
    return min(segments, key=lambda segment: (segment.mask, segment.shard))


def _narrowest(segments: Sequence[Segment]) -> Segment:
    return max(segments, key=lambda segment: (segment.mask, -segment.shard))
