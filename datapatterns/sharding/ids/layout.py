"""What stands in an id: when, in which bucket, by whom, and which one of that millisecond."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
_BUCKET_BITS, _WORKER_BITS, _COUNTER_BITS = 13, 6, 4
_MS_SHIFT = _BUCKET_BITS + _WORKER_BITS + _COUNTER_BITS
_BUCKET_SHIFT = _WORKER_BITS + _COUNTER_BITS

BUCKETS_MAX = 1 << _BUCKET_BITS
"""An id has place for so many buckets."""

WORKERS_MAX = 1 << _WORKER_BITS
"""So many processes can make ids at once."""

PER_MS_MAX = 1 << _COUNTER_BITS
"""A process makes so many ids of one bucket in a millisecond."""

MS_MAX = (1 << 40) - 1
"""The last millisecond that fits into a positive ``bigint``: in 2059."""


@dataclass(frozen=True, slots=True)
class IdParts:
    """What an id says.

    Attributes:
        ms: Milliseconds since 2025 began, in UTC.
        bucket: The bucket of its birth. Later splits may have given the row to another one.
        worker: The number that its maker had leased.
        counter: Which of its millisecond it is.
    """

    ms: int
    bucket: int
    worker: int
    counter: int

    @property
    def made_at(self) -> datetime:
        """When it was made, by its maker's clock; up to some seconds off."""
        return _EPOCH + timedelta(milliseconds=self.ms)

    def packed(self) -> int:
        """Return the id."""
        return (
            self.ms << _MS_SHIFT
            | self.bucket << _BUCKET_SHIFT
            | self.worker << _COUNTER_BITS
            | self.counter
        )


def parts_of_id(row_id: int) -> IdParts:
    """Return what ``row_id`` says.

    Raises:
        ValueError: It is negative, or no ``bigint``.
    """
    if not 0 <= row_id < 1 << 63:
        raise ValueError(f"{row_id} is no id: it is negative, or does not fit into a bigint")
    return IdParts(
        row_id >> _MS_SHIFT,
        row_id >> _BUCKET_SHIFT & (BUCKETS_MAX - 1),
        row_id >> _COUNTER_BITS & (WORKERS_MAX - 1),
        row_id & (PER_MS_MAX - 1),
    )


def ms_at(moment: datetime) -> int:
    """Return the milliseconds from the beginning of 2025 to ``moment``."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)
