"""Compare the rows of a read model that a snapshot sees with those that a replay gives."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from sqlalchemy import Connection

from datapatterns.cqrs.tables.checksums import Checksum, differing_buckets, read_checksum
from datapatterns.cqrs.tables.differences import (
    Difference,
    Verification,
    count_rows,
    find_differences,
)
from datapatterns.cqrs.tables.read_model import ReadModels
from datapatterns.cqrs.tables.replaying import AnyReplay
from datapatterns.cqrs.tables.sampling import Sample
from datapatterns.cqrs.tables.stored_rows import Suspects, rows_in_buckets, rows_in_sample
from datapatterns.sql.long_statements import allow_long_statements
from datapatterns.transactions import reading


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is stored, and what a replay gives.

    Attributes:
        models: Where it is stored.
        replay: What the log says.
        suspects: Where to put stored rows that are to be looked at.
        limit: How many differences to return at most.
        sample: Which keys; None for all.
    """

    models: ReadModels
    replay: AnyReplay
    suspects: Suspects
    limit: int
    sample: Sample | None

    def run(self, conn: Connection, seen: Connection) -> Verification:
        """Return what differs.

        Args:
            conn: The connection of the replay, without a transaction.
            seen: That of the snapshot.
        """
        rows, differences, checksums = 0, list[Difference](), list[str]()
        with reading(conn):  # what it copies is not needed afterwards
            allow_long_statements(conn)
            for table in self.models:
                expected = read_checksum(conn, self.replay.models[table])
                checksums.append(expected.text if expected else "")
                rows += expected.rows if expected else self._count(conn, table)
                if len(differences) < self.limit:
                    differences += self._compare(conn, seen, table, expected)
        left_out = self.replay.left_out
        assert left_out is not None
        return Verification(
            self.replay.position,
            rows,
            differences[: self.limit],
            parked=len(left_out.rows),
            skipped=len(left_out.parts),
            share=1.0 if self.sample is None else self.sample.share,
            seed=None if self.sample is None else self.sample.seed,
            checksum=_together(checksums),
        )

    def _compare(
        self, conn: Connection, seen: Connection, table: type, expected: Checksum | None
    ) -> list[Difference]:
        stored, suspects = self.models[table], self.suspects.models[table]
        buckets = None
        if self.sample is None:
            if expected is not None and (there := read_checksum(seen, stored)) is not None:
                if there == expected:
                    return []
                buckets = differing_buckets((seen, stored), (conn, self.replay.models[table]))
            self.suspects.take(conn, seen, table, rows_in_buckets(stored, buckets))
        else:
            keys = f"keys_of_{suspects.table.name}"
            sampled = rows_in_sample(seen, stored, partial(self._takes, table), name=keys)
            self.suspects.take(conn, seen, table, sampled)
            if expected is not None and read_checksum(conn, suspects) == expected:
                return []
        # Of each row that is left out there may be one difference.
        left_out = self.replay.left_out
        more = len(left_out.rows) if left_out else 0
        found = find_differences(
            conn,
            suspects,
            self.replay.models[table],
            limit=self.limit + more,
            buckets=buckets,
            table=stored.table.name,
        )
        return [one for one in found if not self._hides(table, _key(one))]

    def _takes(self, table: type, key: Hashable) -> bool:
        taken = self.sample is None or self.sample.takes(key)
        return taken and not self._hides(table, key)

    def _hides(self, table: type, key: Hashable) -> bool:
        left_out = self.replay.left_out
        return left_out is not None and left_out.hides(table, key)

    def _count(self, conn: Connection, table: type) -> int:
        return count_rows(conn, self.replay.models[table])


def _together(checksums: Sequence[str]) -> str:
    if not all(checksums):
        return ""
    if len(checksums) == 1:
        return checksums[0]
    return sha256(" ".join(checksums).encode()).hexdigest()[: len(checksums[0])]


def _key(difference: Difference) -> Hashable:
    return difference.key[0] if len(difference.key) == 1 else difference.key
