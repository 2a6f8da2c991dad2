"""What a hash chain over events is made of: the form that is hashed, seals, reports. Pure.

The form of an event is a JSON array of what is stored of it, as `json.dumps` writes it with
``ensure_ascii=False``. Text and numbers are quoted apart, so that no two events share a form, and
whoever has an export can make it again without this library. A time without a date is its name as
PostgreSQL writes it::

    [position, stream_id, tenant, category, key, version, microseconds since 1970 in UTC,
     event_id, type_id, type, schema_version, data, metadata, codec, payload in hex, tags]

Data, metadata and tags are JSON within a text: the very bytes that are stored.

A segment's digest is the SHA-256 of these, one after the other: the line ``datapatterns events 1``;
the number of the segment, the position it begins behind, its last one and the number of its events,
each in eight bytes, the highest first; the digest before, which is all zeros for the first segment;
and the SHA-256 of the digests of its events. So a purged event can go on in the chain as its digest
alone.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

from datapatterns.event_sourcing.events import START, Position

NOTHING_BEFORE: Final = bytes(32)
"""Stands for the digest before the first."""

_HEADER: Final = b"datapatterns events 1\n"


@dataclass(frozen=True, slots=True)
class Seal:
    """One segment of the chain.

    Attributes:
        segment: Its number, from 1.
        after: The segment holds every event behind this position,
        last_position: and up to this one.
        events: How many those are.
        digest: Covers them, and all segments before.
        sealed_at: By the clock of the database.
    """

    segment: int
    after: Position
    last_position: Position
    events: int
    digest: bytes
    sealed_at: datetime


@dataclass(frozen=True, slots=True)
class BrokenSegment:
    """Where the chain does not hold.

    Attributes:
        segment: The first segment that differs from what was sealed or anchored.
        after: What differs lies behind this position,
        last_position: and not behind this one; the same if it is the seal alone.
        reason: What was found.
    """

    segment: int
    after: Position
    last_position: Position
    reason: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What became of the events that were sealed.

    Attributes:
        segments: How many segments hold; what lies behind a broken one was not looked at.
        events: How many events they hold, purged ones among them.
        purged: How many of these are there as a tombstone only.
        last_position: Behind it nothing is sealed.
        anchored: How many of the segments the anchor confirms.
        broken: The first segment that does not hold.
    """

    segments: int
    events: int
    purged: int
    last_position: Position
    anchored: int
    broken: BrokenSegment | None = None

    @property
    def intact(self) -> bool:
        """Whether all sealed events are as they were sealed."""
        return self.broken is None


class SegmentHash:
    """Hashes the events of one segment, one after the other."""

    def __init__(self, *, segment: int, after: int, previous: bytes) -> None:
        self._segment, self._after, self._previous = segment, after, previous
        self._leaves = hashlib.sha256()
        self.events = 0
        self.purged = 0

    @classmethod
    def following(cls, seal: Seal | None) -> Self:
        """Begin the segment behind ``seal``; None for the first."""
        if seal is None:
            return cls(segment=1, after=START, previous=NOTHING_BEFORE)
        return cls(segment=seal.segment + 1, after=seal.last_position, previous=seal.digest)

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add events in their order: each with its form, or with the digest of a purged one."""
        digests = [digest if form is None else event_digest(form) for _, form, digest in rows]
        self._leaves.update(b"".join([digest for digest in digests if digest is not None]))
        self.events += len(rows)
        self.purged += sum(form is None for _, form, _ in rows)

    def digest(self, last_position: int) -> bytes:
        """Return the digest of the segment that ends there."""
        numbers = (self._segment, self._after, last_position, self.events)
        whole = hashlib.sha256(_HEADER)
        for number in numbers:
            whole.update(number.to_bytes(8, "big", signed=True))
        whole.update(self._previous)
        whole.update(self._leaves.digest())
        return whole.digest()


def event_digest(form: str) -> bytes:
    """Return the digest of one event, as tombstones keep it."""
    return hashlib.sha256(form.encode()).digest()


def event_form(values: Sequence[int | str | None]) -> str:
    """Return the form of an event from its values in the order that this module's text says.

    The database makes the same; this is for those who check an export without it.

    >>> event_form([1, "basket", None])
    '[1, "basket", null]'
    """
    return json.dumps(list(values), ensure_ascii=False)
