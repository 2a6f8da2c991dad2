"""Keep the digests of a hash chain where who can change the database cannot change them.

A chain inside one database proves little against its owner, who can seal anew what was changed.
Against a digest that was written down elsewhere there is no such way.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datapatterns.errors import AnchorError
from datapatterns.event_sourcing.keeping.chain import Seal


@dataclass(frozen=True, slots=True)
class AnchoredSeal:
    """What an anchor remembers of a seal."""

    segment: int
    digest: bytes


class Anchor(Protocol):
    """Where digests are written down: a file, an object store with retention, a notary."""

    def publish(self, seals: Sequence[Seal]) -> None:
        """Write ``seals`` down for good, in their order; return when they are safe.

        It may be called again with seals that it has: a crash can come between the two.
        """

    def read(self) -> Iterable[AnchoredSeal]:
        """Return all that was written down, oldest first."""


def read_anchor(anchor: Anchor) -> dict[int, bytes]:
    """Return the digest of each segment that ``anchor`` knows.

    Who can only add to an anchor must not replace what it says, so no line counts more than an
    earlier one.

    Raises:
        AnchorError: It cannot be read, or knows two digests of a segment.
    """
    known: dict[int, bytes] = {}
    for seal in anchor.read():
        if known.setdefault(seal.segment, seal.digest) != seal.digest:
            raise AnchorError(str(anchor), f"it knows two digests of segment {seal.segment}")
    return known


class FileAnchor:
    """A file of JSON lines that only ever grows; let another account or machine own it.

    Args:
        path: The file; it is made when the first seal is published.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def publish(self, seals: Sequence[Seal]) -> None:
        """Append one line for each seal, and wait until the disk has them.

        Raises:
            AnchorError: The last line is not whole.
        """
        if not seals:
            return
        lines = b"".join(_line(seal) for seal in seals)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                raise AnchorError(str(self.path), "its last line is not whole; take it off")
            while lines:
                lines = lines[os.write(file, lines) :]
            os.fsync(file)
        finally:
            os.close(file)
        if not size:  # the file is new, so its folder has to keep its name
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def read(self) -> Iterable[AnchoredSeal]:
        """Return what the file says.

        Raises:
            AnchorError: A line cannot be read.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    said = json.loads(line)
                    seal = AnchoredSeal(int(said["segment"]), bytes.fromhex(said["digest"]))
                except (ValueError, KeyError, TypeError) as error:
                    is_cut = not line.endswith(b"\n")  # by a full disk or a crash
                    reason = "is not whole; take it off" if is_cut else "is no seal"
                    raise AnchorError(str(self.path), f"line {number} {reason}") from error
                yield seal


def _line(seal: Seal) -> bytes:
    said = {
        "segment": seal.segment,
        "after": seal.after,
        "last_position": seal.last_position,
        "events": seal.events,
        "digest": seal.digest.hex(),
        "sealed_at": seal.sealed_at.isoformat(),
    }
    return json.dumps(said).encode() + b"\n"
