"""Speak with several servers at once, in one thread.

What is for all of them is on its way before anybody waits; then whoever has answered is listened
to. Handing each to a thread costs more than a short query does.
"""

import select
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

from datapatterns.sharding.reaching.interrupting import CANCEL_SECONDS, Line

T = TypeVar("T")

_EVENTS: Final = {
    Wait.R: select.POLLIN,
    Wait.W: select.POLLOUT,
    Wait.RW: select.POLLIN | select.POLLOUT,
}
_FIRST_PAUSE_SECONDS: Final = 0.02
_R, _W = int(Ready.R), int(Ready.W)
# Also a line that is broken: reading it tells.
_NOT_WRITABLE: Final = ~select.POLLOUT


@dataclass(slots=True)
class Talk(Generic[T]):
    """What is to be said on a connection.

    Attributes:
        driver: The driver's connection, used by nobody else meanwhile.
        steps: What is said there, as psycopg's generators do.
    """

    driver: Any
    steps: PQGen[T]


@dataclass(slots=True)
class Heard(Generic[T]):
    """What came of it.

    Attributes:
        given: The answers, by name.
        failed: The first that failed, and why; what the others were at was cancelled then.
    """

    given: dict[str, T] = field(default_factory=dict)
    failed: tuple[str, Exception] | None = None


def all_at_once(talks: Mapping[str, Talk[T]]) -> Heard[T]:
    """Have several talks at once; return when all have ended.

    When one fails, or the caller is interrupted, what the others are at is cancelled, and the
    connection of who takes no note of that is broken.
    """
    talking = _Talking[T]()
    try:
        talking.begin(talks)
        talking.go_on()
    except BaseException:
        talking.stop()
        raise
    if talking.heard.failed is not None:
        talking.stop()
    return talking.heard


class _Talking(Generic[T]):
    def __init__(self) -> None:
        self.heard = Heard[T]()
        self._poll = select.poll()
        self._open: dict[int, tuple[str, Talk[T], Wait]] = {}

    def begin(self, talks: Mapping[str, Talk[T]]) -> None:
        for name, talk in talks.items():
            try:
                wait = next(talk.steps)
            except StopIteration as ended:
                self.heard.given[name] = ended.value
            except Exception as error:  # noqa: BLE001 -- raised by whoever hears it
                self._fail(name, error)
                return
            else:
                place = talk.driver.fileno()
                self._open[place] = name, talk, wait
                self._poll.register(place, _EVENTS[wait])

    def go_on(self) -> None:
        """Listen until all have ended, or one has failed."""
        while self._open and self.heard.failed is None:
            self._listen(None)

    def stop(self) -> None:
        """End what is still under way."""
        cancelling: list[Thread] = []
        until, pause_seconds = monotonic() + CANCEL_SECONDS, _FIRST_PAUSE_SECONDS
        # Again and again: a statement that has not been begun is not there to be cancelled.
        while self._open and monotonic() < until:
            lines = [Line.of_driver(talk.driver) for _, talk, _ in self._open.values()]
            new = [Thread(target=line.cancel, daemon=True) for line in lines]
            for thread in new:
                thread.start()
            cancelling += new
            self._listen_for(pause_seconds)
            pause_seconds *= 2
        for _, talk, _ in self._open.values():
            Line.of_driver(talk.driver).sever()
        self._listen_for(CANCEL_SECONDS)  # they end with an error
        for thread in cancelling:  # or it could be the next statement that is cancelled
            thread.join(2 * CANCEL_SECONDS)

    def _listen_for(self, seconds: float) -> None:
        end = monotonic() + seconds
        while self._open and (left := end - monotonic()) > 0:
            self._listen(left * 1_000)

    def _listen(self, milliseconds: float | None) -> None:
        for place, events in self._poll.poll(milliseconds):
            name, talk, waited = self._open[place]
            ready = (_R if events & _NOT_WRITABLE else 0) | (_W if events & select.POLLOUT else 0)
            try:
                wait = talk.steps.send(ready)
            except StopIteration as ended:
                self._end(place)
                self.heard.given[name] = ended.value
            except Exception as error:  # noqa: BLE001 -- raised by whoever hears it
                self._end(place)
                self._fail(name, error)
            except BaseException:
                # Nobody knows where in the talk that was.
                self._end(place)
                Line.of_driver(talk.driver).sever()
                raise
            else:
                if wait != waited:
                    self._open[place] = name, talk, wait
                    self._poll.modify(place, _EVENTS[wait])

    def _end(self, place: int) -> None:
        self._poll.unregister(place)
        del self._open[place]

    def _fail(self, name: str, error: Exception) -> None:
        if self.heard.failed is None:
            self.heard.failed = name, error
