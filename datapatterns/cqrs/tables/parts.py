"""What one event does to one row: the smallest part of a page that is applied, parked or skipped.

An event may concern several rows of several tables. That one of them refuses it is no reason to
keep it from the others, and which rows a worker sees depends on its segment; so parts are what is
told apart, not events.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

from datapatterns.cqrs.definition import Projection, TableProjection
from datapatterns.cqrs.running.segments import HASH_BITS, Segment, key_digest
from datapatterns.cqrs.tables.folding import Step, plan_steps
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.event_sourcing.events import Position
from datapatterns.event_sourcing.recorded import RecordedEvent
from datapatterns.event_sourcing.store import EventStore

_HASH_BYTES: Final = HASH_BITS // 8

Place = tuple[Position, type, Hashable]
"""By what a part is known within a page: the event's position, the table and the key."""


class Part(NamedTuple):
    """One event, as far as it concerns one row.

    Attributes:
        digest: Of the row, see `row_digest`.
    """

    meta: RecordedEvent
    table: type
    key: Hashable
    digest: bytes

    @property
    def place(self) -> Place:
        """By what it is known."""
        return self.meta.position, self.table, self.key


class Keyless(NamedTuple):
    """An event of which nobody can say which rows it concerns, and why."""

    meta: RecordedEvent
    error: Exception


def place_of(step: Step) -> Place:
    """Return of which part ``step`` is."""
    return step.meta.position, step.table, step.key


def row_digest(projection: type[TableProjection], table: type, key: Hashable) -> bytes:
    """Return by what a row is known without telling its key, the same in every process.

    It begins as the digest of the key does, so segments can be told by it; the rest also says
    which table is meant, where there are several.

    Raises:
        SegmentKeyError: Keys of this kind do not look the same in every process.
    """
    of_key = key_digest(key)
    if len(projection.tables) == 1:
        return of_key
    name = read_models_of(projection)[table].table.name
    return of_key[:_HASH_BYTES] + key_digest((name, key))[_HASH_BYTES:]


def segment_owns(segment: Segment, digest: bytes) -> bool:
    """Return whether the row with this digest is one of the segment's."""
    return int.from_bytes(digest[:_HASH_BYTES], "big") & segment.mask == segment.shard


def plan_parts(
    store: EventStore,
    projection: type[Projection],
    events: Sequence[RecordedEvent],
    segment: Segment,
) -> tuple[list[Part], list[Keyless]]:
    """Return the parts of ``events`` in the order of the log, and the events that have none."""
    instance, parts, keyless = projection(), list[Part](), list[Keyless]()
    for meta in events:
        try:
            decoded = [(event, meta) for event in store.decode(meta)]
            rows = dict.fromkeys(
                (step.table, step.key) for step in plan_steps(instance, decoded, segment)
            )
            parts += [
                Part(meta, table, key, row_digest(projection, table, key)) for table, key in rows
            ]
        except Exception as error:  # noqa: BLE001 -- the application's code may raise anything
            keyless.append(Keyless(meta, error))
    return parts, keyless


def apply_in_halves(
    length: int,
    attempt: Callable[[int, int], Exception | None],
    refuse: Callable[[int, Exception], None],
    *,
    begins_event: Callable[[int], bool],
    attempts_max: int,
) -> int:
    """Apply a page part by part as far as must be; return how many were dealt with, from the first.

    What cannot be applied is halved and applied from left to right, each half on top of what is
    applied already: about ``p * log2(length)`` attempts for ``p`` parts that are refused. Parts
    of one event stay together as long as can be, for they may need each other.

    Args:
        length: How many parts there are.
        attempt: Applies a range of them and keeps it, or undoes it and returns why.
        refuse: Called with one that cannot be applied, before any later one is tried.
        begins_event: Whether a part is the first of its event; there the page may end, too.
        attempts_max: After so many, no further range is begun if the page may end there.

    >>> refused = []
    >>> apply_in_halves(
    ...     8,
    ...     lambda start, end: ValueError() if start <= 2 < end or start <= 5 < end else None,
    ...     lambda part, error: refused.append(part),
    ...     begins_event=lambda _: True,
    ...     attempts_max=100,
    ... ), refused
    (8, [2, 5])
    """
    ranges, attempts = [(0, length)] if length else [], 0
    while ranges:
        start, end = ranges.pop()
        if attempts >= attempts_max and start and begins_event(start):
            return start
        error = attempt(start, end)
        attempts += 1
        if error is None:
            continue
        if end - start == 1:
            refuse(start, error)
        else:
            middle = _middle(start, end, begins_event)
            ranges += [(middle, end), (start, middle)]
    return length


def _middle(start: int, end: int, begins_event: Callable[[int], bool]) -> int:
    middle = (start + end) // 2
    left = next((i for i in range(middle, start, -1) if begins_event(i)), None)
    right = next((i for i in range(middle + 1, end) if begins_event(i)), None)
    if left is None or (right is not None and right - middle < middle - left):
        left = right
    return middle if left is None else left
