"""How to follow the log: the steps, without doing any of them.

First page after page. Then it pauses, ever longer, and looks at the last position that was drawn:
only a hint, but one that costs next to nothing. When it has moved, the log is read again.

An answer of None says that the connection was lost. Positions that a server had drawn but not yet
written down when it crashed are drawn again, for other events. So what was kept in memory counts
for nothing then, except the position of the last event: that one was committed.
"""

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from datapatterns.event_sourcing.events import START, Position
from datapatterns.event_sourcing.recorded import LogPage


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a follower pauses when nothing happens: first shortly, then twice as long each time.

    Attributes:
        seconds_min: The first pause after something has happened.
        seconds_max: The longest; new events are seen that much later, at most.
        lost_seconds_max: For how long it tries again where it cannot read.

    Raises:
        ValueError: The first pause is not positive, or longer than the longest.
    """

    seconds_min: float = 0.002
    seconds_max: float = 0.25
    lost_seconds_max: float = 60

    def __post_init__(self) -> None:
        if not 0 < self.seconds_min <= self.seconds_max:
            raise ValueError(
                f"pauses of {self.seconds_min} to {self.seconds_max} s are not possible; begin"
                " with a positive one, and let none be longer than the longest"
            )


class Begin(NamedTuple):
    """Find out where to begin; the answer is a position. ``seen`` is that of the last event."""

    seen: Position | None


class Read(NamedTuple):
    """Read the next page; it is the answer."""

    after: Position | LogPage


class Deliver(NamedTuple):
    """Give the page to whoever follows; there is no answer."""

    page: LogPage


class Pause(NamedTuple):
    """Let time pass, less if somebody was woken or knows that a position beyond is drawn.

    Then the answer is what is known to be drawn; it is None if the time has passed.
    """

    seconds: float
    beyond: Position


class Look(NamedTuple):
    """Look at the last position drawn, or at what somebody saw at most ``seconds_max`` ago."""

    seconds_max: float


Step: TypeAlias = Begin | Read | Deliver | Pause | Look
Flow: TypeAlias = Generator[Step, Any, None]

Life: TypeAlias = tuple[datetime, datetime | None]
"""In which life a server is: since when it runs, and since when it has had no crash."""

_DOUBLED: Final = 2


class Pauses:
    """The pauses of one follower."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._next = pace.seconds_min

    def reset(self) -> None:
        """Begin with short pauses again."""
        self._next = self._pace.seconds_min

    def next(self) -> float:
        """Return how long to pause now."""
        seconds = self._next
        self._next = min(_DOUBLED * seconds, self._pace.seconds_max)
        return seconds


def following(pace: Pace) -> Flow:
    """Follow the log for ever."""
    pauses = Pauses(pace)
    seen: Position | None = None
    while True:
        checkpoint: Position | None = yield Begin(seen)
        if checkpoint is None:
            yield Pause(pauses.next(), _FAR)
            continue
        after: Position | LogPage = checkpoint
        drawn = checkpoint  # what may show in the next page, and need not if somebody writes
        while (page := (yield Read(after))) is not None:
            if page.checkpoint > checkpoint:
                pauses.reset()
                checkpoint = page.checkpoint
                seen = page.events[-1].position if page.events else seen
                yield Deliver(page)
            after = page
            if page.caught_up:
                after = checkpoint
                known = yield from _until_drawn(pauses, checkpoint, drawn)
                if known is None:
                    break
                drawn = known
        yield Pause(pauses.next(), _FAR)


def _until_drawn(
    pauses: Pauses, checkpoint: Position, drawn: Position
) -> Generator[Step, Any, Position | None]:
    """Return, once there may be something to read, what is known to be drawn."""
    while True:
        seconds = pauses.next()
        known: Position | None = yield Pause(seconds, max(checkpoint, drawn))
        if known is not None:
            pauses.reset()
            return max(known, drawn)
        if drawn > checkpoint:
            return drawn  # an open transaction holds the mark back; no hint tells when it ends
        looked: Position | None = yield Look(seconds)
        if looked is None or looked > checkpoint:
            return looked


@dataclass(slots=True)
class Known:
    """What the followers of a process know of the log, and how often they were woken."""

    drawn: Position = START
    life: Life | None = None
    looked_at: float | None = None
    wakes: int = 0

    def look(self, drawn: Position, life: Life, now: float) -> None:
        """Take in what somebody saw, and in which life of the server."""
        self.drawn, self.life, self.looked_at = drawn, life, now

    def is_fresh(self, now: float, seconds_max: float) -> bool:
        """Return whether there is no need to look again."""
        return self.looked_at is not None and now - self.looked_at < seconds_max

    def forget(self) -> None:
        """Know nothing: after a crash positions are drawn again."""
        self.drawn, self.life, self.looked_at = START, None, None

    def ends(self, pause: Pause, *, wakes: int) -> bool:
        """Return whether a pause is over for who knew of so many wakes."""
        return self.wakes != wakes or self.drawn > pause.beyond


_FAR: Final = Position(2**63)
"""No position that is drawn ends this pause."""
