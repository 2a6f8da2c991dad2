"""How to wait for a read model, step by step, for threads and tasks alike.

2 ms after the first look comes the next one, then ever more slowly until 50 ms lie between two;
at once when this process has committed a page.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

from datapatterns.cqrs.reading.sights import Awaited, Sight, Surroundings
from datapatterns.cqrs.reading.turns import Seen
from datapatterns.event_sourcing.events import Position

PAUSE_SECONDS_MIN: Final = 0.002
PAUSE_SECONDS_MAX: Final = 0.05
NO_TIME_SECONDS: Final = 1e-6
"""What is left by rounding only; another look for it would be one look too many, or not."""


@dataclass(frozen=True, slots=True)
class Look:
    """Look how far the read model is; the answer is ``Seen[Sight]``, None if time ran out."""


@dataclass(frozen=True, slots=True)
class Explain:
    """Look what keeps it; the answer is `Surroundings`, None if time ran out."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time pass, or somebody else see something; the answer is ``Seen[Sight]`` or None."""

    since: Seen[Sight]
    seconds: float


Step = Look | Explain | Pause
Steps = Generator[Step, Any, Position]
"""Yields what to do, is sent the answer, returns how far the read model is."""


def waiting(awaited: Awaited, timeout_seconds: float, monotonic: Callable[[], float]) -> Steps:
    """Wait until the read model shows what is awaited, and return how far it is.

    Raises:
        ForeignTokenError: It will never do so, for the token is of another log.
        ReadModelBehindError: It does not in time, or cannot.
    """
    deadline, pause, asks_why = monotonic() + timeout_seconds, PAUSE_SECONDS_MIN, True
    seen: Seen[Sight] | None = yield Look()
    latest = None if seen is None else seen.value
    while seen is not None:
        latest = seen.value
        if awaited.is_reached(latest) and latest.position is not None:
            return latest.position
        if asks_why:  # not each time: it costs as much as a look
            yield from _give_up_early(awaited, latest)
        if (left := deadline - monotonic()) < NO_TIME_SECONDS:
            break
        news: Seen[Sight] | None = yield Pause(seen, min(pause, left))
        seen = news if news is not None else (yield Look())
        pause = min(2 * pause, PAUSE_SECONDS_MAX)
        asks_why = pause == PAUSE_SECONDS_MAX
    around: Surroundings | None = yield Explain()
    raise awaited.behind(latest, None if around is None else awaited.stall(around))


def _give_up_early(awaited: Awaited, sight: Sight) -> Generator[Step, Any, None]:
    around: Surroundings | None = yield Explain()
    stall = None if around is None else awaited.stall(around)
    if stall is not None and stall.final:
        raise awaited.behind(sight, stall)
