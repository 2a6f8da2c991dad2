"""What a worker does besides moving projections on: bounded steps with pauses in between."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine

from datapatterns.cqrs import Message, Outbox, relay_messages
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


@dataclass(frozen=True, slots=True)
class RelayLoop:
    """Passes on the messages that projections have left in the outbox; see `relay_messages`.

    Attributes:
        engine: Where the outbox is.
        publish: Returns when a message is safe elsewhere.
        outbox: Of which schema.
        limit: How many messages one transaction takes.
        attempts_max: After so many a message is given up.
        seconds: How long to pause when there are none.
    """

    engine: Engine
    publish: Callable[[Message], object]
    outbox: Outbox | None = None
    limit: int = 100
    attempts_max: int | None = None
    seconds: float = 0.1
    name: str = "relay of messages"

    def step(self) -> float:
        """Pass on a batch of messages."""
        done = relay_messages(
            self.engine,
            self.publish,
            outbox=self.outbox,
            limit=self.limit,
            attempts_max=self.attempts_max,
        )
        return self.seconds if done.caught_up else 0.0
