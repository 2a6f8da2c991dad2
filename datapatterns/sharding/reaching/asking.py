"""Ask several shards at once, without waiting for the others once the answer cannot be had."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock, Thread
from time import monotonic
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection

from datapatterns.errors import ShardUnavailableError
from datapatterns.sharding.fan_out import FanOut
from datapatterns.sharding.maps.ownership import shard_errors
from datapatterns.sharding.reaching.interrupting import CANCEL_SECONDS, Line
from datapatterns.sharding.reaching.time_limits import time_limit

T = TypeVar("T")

_FIRST_PAUSE_SECONDS: Final = 0.02

Question = tuple[Connection, Callable[[], T]]


@dataclass(slots=True)
class Answers(Generic[T]):
    """What shards have said.

    Attributes:
        given: Their answers, by shard.
        missing: Why there is none of others.
    """

    given: dict[str, T] = field(default_factory=dict)
    missing: dict[str, ShardUnavailableError] = field(default_factory=dict)

    @property
    def names_missing(self) -> tuple[str, ...]:
        """Return the shards that have not answered."""
        return tuple(sorted(self.missing))


def ask_connected(
    fan_out: FanOut,
    questions: Mapping[str, Question[T]],
    *,
    seconds: float | None = None,
    tolerate: bool = False,
    in_turns: bool = False,
) -> Answers[T]:
    """Ask shards at once on connections that are there; return what they say, in that order.

    When one fails, or the caller is interrupted, what the others are at is cancelled, and the
    connection of who takes no note of that is broken. So this returns soon, and nobody uses a
    connection then.

    Args:
        fan_out: The way to ask.
        questions: For each shard its connection, and what to ask there.
        seconds: How long a shard may take.
        tolerate: Whether to go on without shards that do not answer.
        in_turns: Whether the questions share objects, such as a session.

    Raises:
        ShardUnavailableError: One of them does not answer.
        StaleShardMapError: One of them owns other buckets than the map says.
    """
    companions = _Companions(seconds=seconds, tolerate=tolerate)
    named = {
        shard: partial(companions.ask, shard, conn, question)
        for shard, (conn, question) in questions.items()
    }
    ask = fan_out.in_turns if in_turns else fan_out.answers
    try:
        asked = ask(named, interrupt=companions.stop)
    finally:
        companions.end()
    if companions.failure is not None:
        raise companions.failure  # what came after it was cancelled
    answers: Answers[T] = Answers()
    for shard, answer in asked.items():
        error = answer.exception()
        if isinstance(error, ShardUnavailableError) and tolerate:
            answers.missing[shard] = error
        else:
            answers.given[shard] = answer.result()
    return answers


class _Companions:
    """Questions that are worth nothing any more when one of them has failed."""

    def __init__(self, *, seconds: float | None, tolerate: bool) -> None:
        self.failure: Exception | None = None
        self._seconds = seconds
        self._tolerate = tolerate
        self._is_over = False
        self._asking: dict[str, tuple[Line, Event]] = {}
        self._enders: list[Thread] = []
        self._lock = Lock()

    def ask(self, shard: str, conn: Connection, question: Callable[[], T]) -> T:
        answered = Event()
        with self._lock:
            if self._is_over:
                raise ShardUnavailableError(shard)  # nobody waits for it
            self._asking[shard] = Line.of(conn), answered
        try:
            with shard_errors(shard), time_limit(conn, shard, self._seconds):
                return question()
        except Exception as error:
            self._take_note(shard, error)
            raise
        finally:
            with self._lock:
                self._asking.pop(shard, None)
            answered.set()

    def stop(self) -> None:
        """Let all end soon; return at once."""
        with self._lock:
            self._is_over = True
            ending, self._asking = self._asking, {}
            new = [
                Thread(target=_end, args=(line, answered), daemon=True)
                for line, answered in ending.values()
            ]
            self._enders += new
        for thread in new:
            thread.start()

    def end(self) -> None:
        """Wait until nobody is cancelled any more: it could be the next statement."""
        for thread in self._enders:
            thread.join(2 * CANCEL_SECONDS)

    def _take_note(self, shard: str, error: Exception) -> None:
        if self._tolerate and isinstance(error, ShardUnavailableError):
            return
        with self._lock:
            self._asking.pop(shard, None)
            is_first = not self._is_over
            if is_first:
                self.failure = error
        if is_first:
            self.stop()


def _end(line: Line, answered: Event) -> None:
    # Again and again: a statement that is only about to be sent is not there to be cancelled, and a
    # server does not notice that a connection has been severed while it waits for a lock.
    until, pause_seconds = monotonic() + CANCEL_SECONDS, _FIRST_PAUSE_SECONDS
    while monotonic() < until:
        line.cancel()
        if answered.wait(pause_seconds):
            return
        pause_seconds *= 2
    line.sever()
