"""How far a build is, how fast, and how long it will take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from datapatterns.clock import Clock
from datapatterns.cqrs.running.progress import ProjectionProgress
from datapatterns.event_sourcing.events import START, Position


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """What a build has done.

    Attributes:
        events: How many events were read; with several workers each reads all of them.
        position: How far the worker that is last has got in the log.
        target: Up to where it is built at first; whatever follows is caught up with.
        seconds: Since it began.
    """

    events: int
    position: Position
    target: Position
    seconds: float

    @property
    def share(self) -> float:
        """How much of the log is read, 0 to 1; positions that were never used count as well.

        >>> BuildProgress(500, Position(250), Position(1_000), 2.0).share
        0.25
        """
        return min(1.0, self.position / self.target) if self.target else 1.0

    @property
    def events_per_second(self) -> float:
        """How fast events are read."""
        return self.events / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long reading will take at this speed; None as long as nobody knows.

        >>> BuildProgress(500, Position(250), Position(1_000), 2.0).seconds_left
        6.0
        """
        if self.share == 0:
            return None
        return self.seconds * (1 - self.share) / self.share


@dataclass(slots=True)
class Meter:
    """Adds up what several workers have done; a worker is a segment here."""

    target: Position
    segments: int
    began: float
    events: int = 0
    _positions: dict[int, Position] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def count(self, shard: int, events: int, position: Position, now: float) -> BuildProgress:
        """Take in that a worker has read ``events`` up to ``position``; return where all are."""
        with self._lock:
            self.events += events
            self._positions[shard] = position
            begun = len(self._positions) == self.segments
            last = min(self._positions.values()) if begun else START
            return BuildProgress(self.events, Position(last), self.target, now - self.began)


def measured(
    target: Position,
    clock: Clock,
    on_page: Callable[[ProjectionProgress], None],
    on_progress: Callable[[BuildProgress], None],
) -> Callable[[ProjectionProgress], None]:
    """Return what tells both of each page that one worker alone has applied."""
    meter = Meter(target, 1, clock.monotonic())

    def tell(page: ProjectionProgress) -> None:
        on_page(page)
        on_progress(meter.count(0, page.events, page.position, clock.monotonic()))

    return tell
