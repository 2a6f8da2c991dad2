"""What a worker does besides moving projections on: bounded steps with pauses in between."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine

from datapatterns.event_sourcing import EventStore, publish_mark
from datapatterns.transactions import transaction


class Loop(Protocol):
    """Something to be done again and again."""

    @property
    def name(self) -> str:
        """What logs call it."""
        ...

    def step(self) -> float:
        """Do a bounded piece of work, and return how many seconds to pause.

        What it raises is logged, and it is tried again after a growing pause.
        """
        ...


@dataclass(frozen=True, slots=True)
class MarkLoop:
    """Publishes the high-water mark, for readers of the published one.

    Attributes:
        store: Whose mark.
        engine: Leads to the primary.
        seconds: How long to pause in between; readers see events that much later, at most.
    """

    store: EventStore
    engine: Engine
    seconds: float = 0.1
    name: str = "publisher of the mark"

    def step(self) -> float:
        """Publish the mark once."""
        with transaction(
            self.engine.execution_options(isolation_level="READ COMMITTED"),
            attempted="publishing the mark",
        ) as conn:
            publish_mark(conn, self.store)
        return self.seconds
