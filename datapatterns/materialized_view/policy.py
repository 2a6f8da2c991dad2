"""When a view is to be refreshed: what an application promises its readers, and what follows."""

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from math import inf
from typing import Final, TypeAlias

MARGIN_SHARE: Final = 0.1
MARGIN_SECONDS_MAX: Final = 1.0
"""So much earlier than it must a refresh begins: whoever begins it looks now and then only."""

SECONDS_MAX: Final = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Every:
    """Refresh a view so many seconds after it was refreshed last, by whomever.

    Attributes:
        seconds: From one refresh to the next.

    Raises:
        ValueError: It is not positive, or more than a year.
    """

    seconds: float

    def __post_init__(self) -> None:
        _require_time(self.seconds, "between two refreshes")

    def __str__(self) -> str:
        """Return it for people."""
        return f"every {self.seconds:g} s"

    def next_after(self, refreshed_at: datetime) -> datetime:
        """Return when the refresh is due that follows one at ``refreshed_at``."""
        return refreshed_at + timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Daily:
    """Refresh a view once a day.

    >>> Daily(time(3, 30)).next_after(datetime(2026, 1, 1, 3, 30, tzinfo=UTC))
    datetime.datetime(2026, 1, 2, 3, 30, tzinfo=datetime.timezone.utc)

    Attributes:
        at: At what time, in UTC unless it names a zone. Where a clock is set forward over it,
            the refresh comes at the moment that would have been called so.
    """

    at: time

    def __str__(self) -> str:
        """Return it for people."""
        return f"daily at {self.at.isoformat('minutes')}{'' if self.at.tzinfo else ' UTC'}"

    def next_after(self, refreshed_at: datetime) -> datetime:
        """Return when the refresh is due that follows one at ``refreshed_at``."""
        zone = self.at.tzinfo or UTC
        local = refreshed_at.astimezone(zone)
        moment = datetime.combine(local.date(), self.at.replace(tzinfo=None), zone)
        # Compared as moments: two times of one zone compare as a clock on the wall shows them.
        while moment.astimezone(UTC) <= refreshed_at.astimezone(UTC):
            moment += timedelta(days=1)
        return moment


Schedule: TypeAlias = Every | Daily


@dataclass(frozen=True, slots=True)
class RefreshPolicy:
    """When workers refresh a view; with neither of the first two only on demand.

    Attributes:
        max_staleness_seconds: For so long, at most, may a committed change be missing.
        schedule: When it is refreshed whether or not that is needed.
        timeout_seconds: After so long a statement of a refresh is given up; unless given, what
            the worker has for all.

    Raises:
        ValueError: A time is not positive, or more than a year.
    """

    max_staleness_seconds: float | None = None
    schedule: Schedule | None = None
    timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_staleness_seconds is not None:
            _require_time(self.max_staleness_seconds, "of staleness")
        if self.timeout_seconds is not None:
            _require_time(self.timeout_seconds, "for a statement")

    def __str__(self) -> str:
        """Return it for people."""
        staleness = self.max_staleness_seconds
        parts = [] if staleness is None else [f"at most {staleness:g} s stale"]
        parts += [] if self.schedule is None else [str(self.schedule)]
        return ", ".join(parts) or "on demand"

    @property
    def on_demand(self) -> bool:
        """Whether no worker refreshes it."""
        return self.max_staleness_seconds is None and self.schedule is None

    def seconds_left(
        self, refreshed_at: datetime, now: datetime, *, as_of: datetime, duration: float
    ) -> float:
        """Return in how many seconds a refresh is due; at most 0 if it is, infinity for never.

        Args:
            refreshed_at: When it was refreshed last.
            now: By the same clock.
            as_of: Since when changes may be missing; earlier, if it is built upon other views.
            duration: How many seconds the last refresh took.
        """
        left = inf
        if self.schedule is not None:
            left = (self.schedule.next_after(refreshed_at) - now).total_seconds()
        if self.max_staleness_seconds is not None:
            age = (now - as_of).total_seconds()
            left = min(left, _rest_seconds(self.max_staleness_seconds, duration) - age)
        return left


def _rest_seconds(max_staleness_seconds: float, duration: float) -> float:
    """Return how long a view may be left alone after a refresh.

    A change that was committed right after the last refresh had looked is missing until the next
    one has committed: for the rest of the last, the pause, and the whole of the next. Where
    refreshes take longer than that allows, the view has half of the time off all the same.
    """
    margin = min(MARGIN_SHARE * max_staleness_seconds, MARGIN_SECONDS_MAX)
    rest = max_staleness_seconds - 2 * duration - margin
    return rest if rest > 0 else min(duration, max_staleness_seconds)


def _require_time(seconds: float, what: str) -> None:
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"{seconds!r} seconds {what}: give more than 0 and at most a year")
