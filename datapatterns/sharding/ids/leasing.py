"""Lease a worker number, and with it a span of milliseconds that nobody has used with it.

So neither clocks that are wrong, nor crashes, nor a number that is given to the next process can
make two equal ids: what was leased begins above all that anybody had with that number.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, Engine, func, or_, select, update

from datapatterns.errors import IdWorkersTakenError
from datapatterns.sharding.engines import tables_needed
from datapatterns.sharding.ids.layout import WORKERS_MAX
from datapatterns.sharding.schema import sharding_tables
from datapatterns.sql.metadata import DEFAULT_SCHEMA
from datapatterns.transactions import fresh_reads, resuming


@dataclass(frozen=True, slots=True)
class Span:
    """What one process may use.

    Attributes:
        worker: The number that goes into its ids.
        after_ms: Ids are of later milliseconds than this.
        until_ms: And of none after this.
    """

    worker: int
    after_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class SpanLeases:
    """Leases spans from the control database.

    Attributes:
        engine: The control database.
        span_ms: How many milliseconds a lease is for.
        held_seconds: After so long without a renewal another process may take the number.
        schema: Where the library's tables live.
    """

    engine: Engine
    span_ms: int
    held_seconds: float
    schema: str = DEFAULT_SCHEMA

    def take(self, holder: UUID, now_ms: int) -> Span:
        """Lease a span that ends after ``now_ms``, with the number that ``holder`` has, if it has.

        Raises:
            CommitUnansweredError: The connection broke during the COMMIT; do it again.
            IdWorkersTakenError: All numbers are held by others.
            MigrationNeededError: The control database does not have the library's tables.
        """
        with (
            tables_needed(self.schema),
            # Who waited for a row is to see its ceiling of by then.
            fresh_reads(self.engine) as conn,
            resuming(conn, "a lease of a worker number"),
        ):
            worker = self._found(conn, holder)
            if worker is None:
                raise IdWorkersTakenError(WORKERS_MAX)
            table = sharding_tables(self.schema).id_worker
            until = conn.scalar(
                update(table)
                .where(table.c.worker == worker)
                .values(
                    holder=holder,
                    lease_until=func.clock_timestamp() + timedelta(seconds=self.held_seconds),
                    ms_ceiling=func.greatest(table.c.ms_ceiling, now_ms) + self.span_ms,
                )
                .returning(table.c.ms_ceiling)
            )
        assert until is not None
        return Span(worker, until - self.span_ms, until)

    def release(self, holder: UUID) -> None:
        """Let the next one have the number; what was leased of it stays used.

        Raises:
            CommitUnansweredError: The connection broke during the COMMIT; the lease ends by itself.
        """
        table = sharding_tables(self.schema).id_worker
        with fresh_reads(self.engine) as conn, resuming(conn, "the release of a worker number"):
            conn.execute(
                update(table).where(table.c.holder == holder).values(holder=None, lease_until=None)
            )

    def _found(self, conn: Connection, holder: UUID) -> int | None:
        """Return the number of ``holder``, or one that is free, with its row locked."""
        table = sharding_tables(self.schema).id_worker
        mine = select(table.c.worker).where(table.c.holder == holder).limit(1).with_for_update()
        free = (
            select(table.c.worker)
            .where(or_(table.c.lease_until.is_(None), table.c.lease_until < func.clock_timestamp()))
            # The one that is least ahead of the clocks.
            .order_by(table.c.ms_ceiling, table.c.worker)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        found = conn.scalar(mine)
        return conn.scalar(free) if found is None else found
