"""How to query a read model, step by step, for threads and tasks alike."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from datapatterns.cqrs.reading.answers import (
    Answer,
    Asked,
    Attempted,
    Demand,
    Missed,
    Stale,
    demanded,
)
from datapatterns.cqrs.reading.tokens import Token
from datapatterns.errors import ReadModelBehindError

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 5.0
"""How long a query waits unless it is told otherwise."""

REST_SECONDS: Final = 0.05
"""So often is asked again what can only become fresh by being looked at."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Ask if the read model is far enough; the answer is `Answer` or `Missed`.

    Attributes:
        anyway: Ask also if it is not far enough, as long as it is there.
    """

    demand: Demand
    anyway: bool


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until the read model is far enough; the answer is None, or what prevents it."""

    goal: Token
    seconds: float


@dataclass(frozen=True, slots=True)
class Rest:
    """Let time pass; the answer is None."""

    seconds: float


Step: TypeAlias = Attempt | Await | Rest
Steps: TypeAlias = Generator[Step, Any, Answer[Any]]


def querying(asked: Asked, monotonic: Callable[[], float]) -> Steps:
    """Ask, wait and ask again until the answer is fresh enough, or the time has passed.

    Raises:
        ReadModelBehindError: It is not, and a stale one was not asked for or does not exist.
        ValueError: Nothing can be fresh as asked.
    """
    demand = demanded(asked)
    stale = check_stale(asked)
    deadline = monotonic() + asked.get("timeout_seconds", TIMEOUT_SECONDS)
    while True:
        tried: Attempted[Any] = yield Attempt(demand, anyway=False)
        if not isinstance(tried, Missed):
            return tried
        left = deadline - monotonic()
        # Also without time: for its error says what is the matter.
        error: ReadModelBehindError | None = yield Await(tried.goal, max(0.0, left))
        if error is None and left <= 0:
            error = tried.error()
        if error is not None:
            if stale == "refuse":
                raise error
            return (yield from _what_is_there(demand, error))
        if tried.has_reached_goal:
            # With its events elsewhere, its runner has to look whether this is all: it may do so
            # without any move that could be waited for.
            yield Rest(min(REST_SECONDS, max(0.0, left)))


def check_stale(asked: Asked) -> Stale:
    """Return what to do with a stale answer.

    Raises:
        ValueError: Neither of the two things that can be done.
    """
    stale = asked.get("stale", "refuse")
    if stale not in ("refuse", "serve"):
        raise ValueError(f"stale={stale!r} is neither 'refuse' nor 'serve'")
    return stale


def _what_is_there(demand: Demand, error: ReadModelBehindError) -> Steps:
    tried: Attempted[Any] = yield Attempt(demand, anyway=True)
    if isinstance(tried, Missed):
        raise error
    return tried
