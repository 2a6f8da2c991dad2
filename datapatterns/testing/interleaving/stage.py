"""What the connections of an explorer share: its servers, and the schedule that runs."""

import threading
from dataclasses import dataclass, field

from datapatterns.testing.interleaving.servers import Servers
from datapatterns.testing.interleaving.tasks import CURRENT, Task

_LEARNING_RATE = 0.1


@dataclass(slots=True)
class Stage:
    """Where tasks and their connections meet.

    Attributes:
        servers: Asked who is blocked.
        insiders: The threads that may use gated connections while a schedule runs without being
            a task: the one that directs it, the event loop, and tasks that have ended.
        step_seconds: How long a step takes that nobody hinders, on average of late.
        refusals: What was refused in this schedule; whoever was refused may keep it to itself.
    """

    servers: Servers = field(default_factory=Servers)
    insiders: set[int] = field(default_factory=set)
    step_seconds: float = 0.0
    refusals: list[RuntimeError] = field(default_factory=list)

    def learn(self, step_seconds: float) -> None:
        """Take another step into account."""
        self.step_seconds += (step_seconds - self.step_seconds) * _LEARNING_RATE

    def current_task(self) -> Task | None:
        """Return the task that is about to use a connection; outside a schedule there is none.

        Raises:
            RuntimeError: It is a thread that a task has started.
        """
        task = CURRENT.get()
        if task is None and self.insiders and threading.get_ident() not in self.insiders:
            # Context variables are inherited by asyncio's tasks and by to_thread(), not by threads.
            refusal = RuntimeError(
                "a thread that no schedule knows uses a connection of the explorer: make it a "
                "task of its own, or start it with contextvars.copy_context().run"
            )
            self.refusals.append(refusal)
            raise refusal
        return task
