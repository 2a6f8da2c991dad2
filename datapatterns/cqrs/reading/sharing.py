"""Let the threads that wait for one read model share their looks at it."""

import os
from collections.abc import Callable, Hashable
from threading import TIMEOUT_MAX, Condition, Lock
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from datapatterns.clock import Clock, SystemClock
from datapatterns.cqrs.reading.turns import Seen, Ticket, Turn, Turns
from datapatterns.cqrs.running.bells import listen

T = TypeVar("T")


class SharedLooks(Generic[T]):
    """The looks of one process at one read model through one engine."""

    def __init__(self) -> None:
        # Reentrant: a bell may ring in the middle of anything that this thread does.
        self._changed = Condition()
        self._turns: Turns[T] = Turns()

    def rung(self) -> None:
        """Let who waits look at once."""
        with self._changed:
            self._turns.rings += 1
            self._changed.notify_all()

    def look(self, ask: Callable[[], T], left: Callable[[], float]) -> Seen[T] | None:
        """Return what a look that begins from now on sees; None if ``left`` has run out.

        Who has no time at all does not wait for another's look, but looks.
        """
        with self._changed:
            wanted, waited = self._turns.join(), False
            while (turn := self._turns.take(wanted)) is Turn.WAIT:
                if (seconds := left()) <= 0:
                    if waited:
                        return None
                    turn = Turn.ALONE
                    break
                waited = True
                self._changed.wait(min(seconds, TIMEOUT_MAX))
            if isinstance(turn, Seen):
                return turn
            if turn is Turn.ALONE:
                ticket, shared = Ticket(self._turns.ended, self._turns.rings), False
            else:
                ticket, shared = self._turns.begin(), True
        if not shared:
            return Seen(ask(), ticket.number, ticket.rings)
        return self._look_for_all(ask, ticket)

    def pause(self, since: Seen[T], seconds: float, clock: Clock) -> Seen[T] | None:
        """Return what somebody else sees within ``seconds``; None if it is time to look."""
        if not isinstance(clock, SystemClock):
            clock.sleep(seconds)  # whoever brings a clock says how time passes
            return None
        deadline = clock.monotonic() + seconds
        with self._changed:
            while (news := self._turns.news(since)) is Turn.WAIT:
                if (left := deadline - clock.monotonic()) <= 0:
                    return None
                self._changed.wait(left)
        return news if isinstance(news, Seen) else None

    def _look_for_all(self, ask: Callable[[], T], ticket: Ticket) -> Seen[T]:
        try:
            value = ask()
        except BaseException as error:
            with self._changed:
                if isinstance(error, Exception):
                    self._turns.fail(ticket)
                else:
                    self._turns.abandon()
                self._changed.notify_all()
            raise
        with self._changed:
            self._changed.notify_all()
            return self._turns.succeed(ticket, value)


class _OfProcess:
    """All shared looks of this process."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Leave behind what threads of the parent do: in a forked child nobody ends it."""
        self.lock = Lock()
        self.looks = WeakKeyDictionary[Engine, dict[Hashable, SharedLooks[Any]]]()


_HERE: Final = _OfProcess()

os.register_at_fork(after_in_child=_HERE.begin_anew)


def shared_looks(engine: Engine, schema: str, name: str, *key: Hashable) -> SharedLooks[Any]:
    """Return the looks that all share who ask for the same."""
    with _HERE.lock:
        looks = _HERE.looks.setdefault(engine, {})
        whole = (schema, name, *key)
        if whole not in looks:
            looks[whole] = SharedLooks()
            listen(schema, name, looks[whole])
        return looks[whole]
