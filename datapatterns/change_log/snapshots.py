"""Snapshots as values: which transactions a statement could see."""

from dataclasses import dataclass
from typing import NewType, Self

Xid = NewType("Xid", int)
"""A 64-bit transaction id (``xid8``); it never wraps around."""

XID_MAX = Xid(2**64 - 1)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``pg_snapshot`` holds: everything before ``xmax`` shows, unless it was in progress.

    Attributes:
        xmin: All transactions before this one had ended.
        xmax: This transaction and all later ones had not begun.
        in_progress: Those between the two that had not ended, in rising order.
    """

    xmin: Xid
    xmax: Xid
    in_progress: tuple[Xid, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the snapshot that PostgreSQL writes as ``xmin:xmax:xip,xip``.

        >>> Snapshot.parse("10:20:10,14")
        Snapshot(xmin=10, xmax=20, in_progress=(10, 14))
        """
        xmin, xmax, in_progress = text.split(":")
        running = tuple(Xid(int(xid)) for xid in in_progress.split(",") if xid)
        return cls(Xid(int(xmin)), Xid(int(xmax)), running)

    def __str__(self) -> str:
        """Return the snapshot as PostgreSQL writes it."""
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.in_progress))}"

    def shows(self, xid: Xid) -> bool:
        """Return whether what ``xid`` committed can be seen."""
        return xid < self.xmax and xid not in self.in_progress

    def shows_all_of(self, other: "Snapshot") -> bool:
        """Return whether whatever ``other`` shows can be seen: it is not the younger of the two.

        >>> Snapshot.parse("10:20:10,14").shows_all_of(Snapshot.parse("10:18:10,14"))
        True
        >>> Snapshot.parse("10:20:10,14").shows_all_of(Snapshot.parse("10:18:10"))
        False
        """
        return self.xmax >= other.xmax and not any(map(other.shows, self.in_progress))

    def full_xid(self, xid: int) -> Xid:
        """Return the id whose last 32 bits are ``xid``, as some of PostgreSQL's views show it.

        >>> Snapshot.parse("8589934590:8589934600:").full_xid(4294967295)
        8589934591
        >>> Snapshot.parse("8589934590:8589934600:").full_xid(9)
        8589934601
        """
        half = 2**31
        return Xid(self.xmax + (xid - self.xmax + half) % 2**32 - half)

    def without(self, xid: Xid) -> "Snapshot":
        """Return the snapshot that does not show ``xid``.

        A transaction's own id is never among those in progress, so its snapshots turn to show it
        as soon as any later transaction has ended.

        >>> str(Snapshot.parse("10:20:14").without(Xid(12)))
        '10:20:12,14'
        """
        if not self.shows(xid):
            return self
        return Snapshot(min(self.xmin, xid), self.xmax, tuple(sorted({*self.in_progress, xid})))
