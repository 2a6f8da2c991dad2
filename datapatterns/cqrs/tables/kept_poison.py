"""What a build could not apply, until its rows are there."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.parking import Unapplied, forget, park, read_owed, skip
from datapatterns.cqrs.schema import ProjectionTables
from datapatterns.cqrs.tables.parts import segment_owns
from datapatterns.cqrs.tables.poison import Dealt


@dataclass(slots=True)
class KeptPoison:
    """What a build could not apply, in memory until its rows are there.

    Attributes:
        rows: By digest, those whose events wait.
    """

    waiting: list[Unapplied] = field(default_factory=list)
    skipped: list[Unapplied] = field(default_factory=list)
    rows: set[bytes] = field(default_factory=set)

    def add(self, dealt: Dealt) -> None:
        """Add what became of one more page."""
        self.waiting += dealt.waiting
        self.skipped += dealt.skipped
        self.rows |= {one.key_digest for one in dealt.waiting}

    def record(
        self,
        conn: Connection,
        tables: ProjectionTables,
        leases: Sequence[Lease],
        *,
        versions: Collection[int],
    ) -> None:
        """Put it in the place of what ``versions`` have kept so far.

        A build sends no messages. Those of events that have waited before and wait again were
        never sent, so they are when the events are retried.

        Args:
            conn: A connection in a transaction.
            tables: Where it is written down.
            leases: On all segments of the version that was built.
            versions: That one, and those whose rows are overwritten.
        """
        name = leases[0].name
        owed = read_owed(conn, tables, name)
        forget(conn, tables, name, versions)
        skip(conn, tables, leases[0], self.skipped)
        for lease in leases:
            of_segment = self._of(lease)
            due = [one for one in of_segment if (one.position, one.key_digest) in owed]
            park(conn, tables, lease, due, silent=False)
            park(conn, tables, lease, of_segment, silent=True)

    def count(self, lease: Lease) -> int:
        """Return how many events of a segment wait."""
        return len(self._of(lease))

    def _of(self, lease: Lease) -> list[Unapplied]:
        return [one for one in self.waiting if segment_owns(lease.segment, one.key_digest)]
