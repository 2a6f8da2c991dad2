"""What those who write know of the fate of their events."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(slots=True)
class Ledger:
    """Ids of events, 16 bytes each: a million of them travel between processes.

    Attributes:
        stored: Their commit was acknowledged, or found out by a retry.
        lost: Rolled back, refused, or found not to have been committed.
        retried: How many transactions had an unknown outcome.
        repeated: How many of these turned out to have been committed.
        deadlocks: How many transactions the server chose as victims.
    """

    stored: bytearray = field(default_factory=bytearray)
    lost: bytearray = field(default_factory=bytearray)
    retried: int = 0
    repeated: int = 0
    deadlocks: int = 0

    def note(self, ids: Iterable[UUID], *, stored: bool) -> None:
        """Write down what became of some events."""
        (self.stored if stored else self.lost).extend(b"".join([one.bytes for one in ids]))

    @property
    def count(self) -> int:
        """How many events are stored."""
        return len(self.stored) // 16

    def add(self, other: "Ledger") -> None:
        """Take in what another one knows."""
        self.stored += other.stored
        self.lost += other.lost
        self.retried += other.retried
        self.repeated += other.repeated
        self.deadlocks += other.deadlocks


def ids_in(packed: bytes | bytearray) -> list[bytes]:
    """Return the ids one by one."""
    return [bytes(packed[at : at + 16]) for at in range(0, len(packed), 16)]
