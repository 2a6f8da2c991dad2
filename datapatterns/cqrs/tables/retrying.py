"""Apply what was parked, once what refused it is mended; or give it up.

Who does it takes the lease of the segment, whoever holds that: the holder's page is undone, and no
other can begin before the lease is given back. So it is a page like any other, which changes rows
first and the segment's row last, and does not move the checkpoint.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sqlalchemy import Connection, Engine, select

from datapatterns.cqrs.definition import Projection
from datapatterns.cqrs.running.advancing import advance
from datapatterns.cqrs.running.events_elsewhere import check_followed_log
from datapatterns.cqrs.running.leasing import Lease, release, take_over
from datapatterns.cqrs.running.paging import stored_types
from datapatterns.cqrs.running.parking import (
    ParkedEvent,
    Unapplied,
    explain,
    give_up,
    parked_events,
    parked_rows,
    unpark,
)
from datapatterns.cqrs.running.runners import LeaseTerms
from datapatterns.cqrs.running.segments import Segment
from datapatterns.cqrs.schema import ProjectionTables, projection_tables
from datapatterns.cqrs.tables.folding import Step
from datapatterns.cqrs.tables.parts import row_digest, segment_owns
from datapatterns.cqrs.tables.poison import Folding, unapplied
from datapatterns.cqrs.tables.projecting import find_poison
from datapatterns.cqrs.tables.versions import read_models_for
from datapatterns.errors import LeaseLostError, ReadModelBuildingError
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore
from datapatterns.failpoints import failpoint
from datapatterns.transactions import fresh_reads, resuming

_READ_AHEAD_MAX: Final = 100
_WITH_ROWS: Final = ("ready", "live", "standby")


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of parked events.

    Attributes:
        events: How many were applied, or given up.
        keys: Of how many rows nothing waits any more.
        refused: The rows of which an event still cannot be applied, and what that raised.
    """

    events: int
    keys: int
    refused: tuple[Unapplied, ...] = ()


@dataclass(frozen=True, slots=True)
class ParkedWork:
    """Retries or gives up what is parked of one projection."""

    store: EventStore
    projection: type[Projection]
    terms: LeaseTerms
    page_events: int

    def retry(self, engine: Engine, digests: Collection[bytes] | None) -> Retried:
        """Do what `Projections.retry` promises, for these rows or all."""
        return self._each_row(engine, digests, self._retry_row)

    def discard(self, engine: Engine, digests: Collection[bytes]) -> Retried:
        """Do what `Projections.discard` promises."""
        return self._each_row(engine, digests, self._discard_row)

    def _each_row(
        self,
        engine: Engine,
        digests: Collection[bytes] | None,
        work: Callable[[Connection, Lease, bytes], tuple[Lease, int, Unapplied | None]],
    ) -> Retried:
        events, keys, refused = 0, 0, list[Unapplied]()
        with fresh_reads(engine) as conn:
            for shard in self._shards(conn, digests):
                lease = self._take(conn, shard)
                try:
                    for digest in self._rows(conn, lease, digests):
                        lease, done, failed = work(conn, lease, digest)
                        events += done
                        if failed is None:
                            keys += 1
                        else:
                            refused.append(failed)
                finally:
                    # After a lost connection there is nothing to give back with.
                    if not conn.invalidated:
                        with resuming(conn, self._this):
                            release(conn, self._tables, lease)
        return Retried(events, keys, tuple(refused))

    def _shards(self, conn: Connection, digests: Collection[bytes] | None) -> list[int]:
        shards, projections = self._tables.shards, self._tables.projections
        with resuming(conn, self._this):
            rows = conn.execute(
                select(shards.c.shard, shards.c.mask, projections.c.status)
                .join_from(shards, projections)
                .where(
                    shards.c.name == self.projection.name,
                    shards.c.version == self.projection.version,
                    shards.c.parked > 0,
                )
                .order_by(shards.c.shard)
            ).all()
        if any(status not in _WITH_ROWS for _, _, status in rows):
            raise ReadModelBuildingError(self.projection.name, position=None)
        return [
            shard
            for shard, mask, _ in rows
            if digests is None or any(segment_owns(Segment(shard, mask), one) for one in digests)
        ]

    def _take(self, conn: Connection, shard: int) -> Lease:
        with resuming(conn, self._this):
            leases = take_over(
                conn,
                self._tables,
                self.projection,
                owner=self.terms.owner,
                seconds=self.terms.seconds,
                all_versions=False,
                shard=shard,
            )
        failpoint("retry.lease-taken")
        if not leases:  # merged with another segment meanwhile, or retired
            raise LeaseLostError(f"projection {self.projection.name}", epoch=0)
        return leases[0]

    def _rows(
        self, conn: Connection, lease: Lease, digests: Collection[bytes] | None
    ) -> list[bytes]:
        # By their first event: of rows that refer to each other, the one that came first.
        with resuming(conn, self._this):
            rows = parked_rows(conn, self._tables, lease)
        return [digest for digest, _ in rows if digests is None or digest in digests]

    def _retry_row(
        self, conn: Connection, lease: Lease, digest: bytes
    ) -> tuple[Lease, int, Unapplied | None]:
        events = 0
        while True:
            with resuming(conn, self._this):
                check_followed_log(conn, self._tables, self.store, lease)
                waiting = parked_events(conn, self._tables, lease, digest, limit=self.page_events)
                applied, failed = self._apply(conn, lease, digest, waiting)
                done = [event.position for event in waiting[:applied]]
                parked = lease.parked - unpark(conn, self._tables, lease, digest, done)
                if failed is not None:
                    explain(conn, self._tables, lease, failed)
                failpoint("retry.applied")
                lease = advance(conn, self._tables, lease, lease.position, parked=parked)
            failpoint("retry.committed")
            events += applied
            if failed is not None or len(waiting) < self.page_events:
                return lease, events, failed

    def _discard_row(
        self, conn: Connection, lease: Lease, digest: bytes
    ) -> tuple[Lease, int, Unapplied | None]:
        with resuming(conn, self._this):
            gone = give_up(conn, self._tables, lease, digest)
            parked = lease.parked - gone
            lease = advance(conn, self._tables, lease, lease.position, parked=parked)
        return lease, gone, None

    def _apply(
        self, conn: Connection, lease: Lease, digest: bytes, waiting: Sequence[ParkedEvent]
    ) -> tuple[int, Unapplied | None]:
        """Apply the first of them, as many as can be; return how many, and why not the next."""
        found = self._read(conn, [event.position for event in waiting])
        present = next((i for i, event in enumerate(found) if event is None), len(found))
        events = [event for event in found[:present] if event is not None]
        silent = {event.position for event in waiting if event.silent}

        def takes(step: Step) -> bool:
            return row_digest(self.projection, step.table, step.key) == digest

        def apply(some: Sequence[RecordedEvent]) -> None:
            for sends, run in _runs(some, silent):
                self._folding(lease, sends=sends).apply(conn, run, takes)

        length, error = find_poison(conn, events, apply)
        apply(events[:length])
        if error is not None:
            return length, unapplied(events[length], digest, error)
        if present < len(waiting):
            gone = waiting[present]
            return length, Unapplied(
                digest, gone.position, gone.event_type, "EventGone", "the log has it no more"
            )
        return length, None

    def _read(self, conn: Connection, positions: Sequence[Position]) -> list[RecordedEvent | None]:
        types = stored_types(self.store, self.projection)
        found: dict[Position, RecordedEvent] = {}
        wanted, seen = set(positions), Position(0)
        for position in positions:
            if position <= seen:
                continue
            # Others may lie between them, more than is worth to be read at once.
            limit = min(_READ_AHEAD_MAX, len(positions) - len(found))
            page = self.store.read_log(conn, Position(position - 1), limit=limit, event_types=types)
            found |= {event.position: event for event in page.events if event.position in wanted}
            seen = page.events[-1].position if page.events else position
        return [found.get(position) for position in positions]

    def _folding(self, lease: Lease, *, sends: bool) -> Folding:
        models = read_models_for(self.projection, lease.status)
        sends = sends and lease.status == "live"
        return Folding(self.store, self.projection, models, lease.segment, sends=sends)

    @property
    def _tables(self) -> ProjectionTables:
        return projection_tables(self.store.schema)

    @property
    def _this(self) -> str:
        return f"parked events of projection {self.projection.name}"


def _runs(
    events: Sequence[RecordedEvent], silent: Collection[Position]
) -> list[tuple[bool, list[RecordedEvent]]]:
    runs = groupby(events, key=lambda event: event.position not in silent)
    return [(sends, list(run)) for sends, run in runs]
