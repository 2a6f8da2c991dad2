"""Time that passes only when nobody has anything better to do."""

import threading
from datetime import datetime, timedelta

from datapatterns.testing.clock import BEGINNING
from datapatterns.testing.interleaving.choosing import Gate
from datapatterns.testing.interleaving.pausing import pass_gate, pass_gate_async
from datapatterns.testing.interleaving.tasks import CURRENT


class VirtualClock:
    """A ``datapatterns.clock.Clock`` for the tasks of an explorer: nobody waits in real time.

    A sleep is a gate. All others who can go on go first, and then the one who wakes first; time
    leaps to its end. Each schedule begins at the same time.
    """

    def __init__(self) -> None:
        self._passed_seconds = 0.0
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the time it shows."""
        return BEGINNING + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Return the seconds that have passed in this schedule."""
        with self._lock:
            return self._passed_seconds

    def sleep(self, seconds: float) -> None:
        """Let others go first, and then ``seconds`` pass; outside a task, at once."""
        due = self.monotonic() + max(0.0, seconds)
        if (task := CURRENT.get()) is not None:
            pass_gate(_sleep_of(task.name, seconds, due))
        self._advance_to(due)

    async def sleep_async(self, seconds: float) -> None:
        """Let others go first, and then ``seconds`` pass; for coroutines."""
        due = self.monotonic() + max(0.0, seconds)
        if (task := CURRENT.get()) is not None:
            await pass_gate_async(_sleep_of(task.name, seconds, due))
        self._advance_to(due)

    def restart(self) -> None:
        """Show the beginning again."""
        with self._lock:
            self._passed_seconds = 0.0

    def _advance_to(self, due: float) -> None:
        # Whoever overslept because others went on wakes later than it wanted.
        with self._lock:
            self._passed_seconds = max(self._passed_seconds, due)


def _sleep_of(task: str, seconds: float, due: float) -> Gate:
    return Gate(task, f"sleep {seconds:g} s", yields=True, due=due, in_server=False)
