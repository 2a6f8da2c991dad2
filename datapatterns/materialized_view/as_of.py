"""Up to where a view shows the tables that it is built upon in the end, by way of other views."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from datapatterns.change_log.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class AsOf:
    """A state of tables.

    Attributes:
        snapshot: Changes that it shows are in it, and no others.
        at: When that was.
    """

    snapshot: Snapshot
    at: datetime


def earliest(states: Iterable[AsOf]) -> AsOf:
    """Return what all of these states contain.

    >>> now = datetime(2026, 1, 1)
    >>> a = AsOf(Snapshot.parse("10:20:14"), now)
    >>> b = AsOf(Snapshot.parse("12:18:12,15"), now)
    >>> str(earliest([a, b]).snapshot)
    '10:18:12,14,15'
    """
    found = [*states]
    snapshots = [state.snapshot for state in found]
    xmax = min(snapshot.xmax for snapshot in snapshots)
    running = {xid for snapshot in snapshots for xid in snapshot.in_progress if xid < xmax}
    xmin = min(snapshot.xmin for snapshot in snapshots)
    return AsOf(Snapshot(xmin, xmax, tuple(sorted(running))), min(state.at for state in found))
