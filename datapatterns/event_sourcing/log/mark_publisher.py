"""The loop that publishes the high-water mark, so that readers of the published one see it move."""

from dataclasses import dataclass, field
from threading import Event
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine

from datapatterns.clock import SYSTEM_CLOCK, Clock, SystemClock
from datapatterns.event_sourcing.log.losses import UNANSWERED, Losses, Unanswered
from datapatterns.event_sourcing.log.publishing import publish_mark
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import resuming

AnyEngine = TypeVar("AnyEngine")


@dataclass(slots=True)
class PublisherState(Generic[AnyEngine]):
    """How a publisher publishes, whoever drives it: a thread or a task."""

    store: EventStore
    engine: AnyEngine
    seconds: float = field(default=0.1, kw_only=True)
    lost_seconds_max: float = field(default=60, kw_only=True)
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True, repr=False)
    _losses: Losses = field(default_factory=Losses, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"a pause of {self.seconds} s is none; let some time pass")

    def _publish_on(self, conn: Connection) -> None:
        with resuming(conn, "publishing the mark"):
            publish_mark(conn, self.store)
        self._losses.end()

    def _can_go_on(self, error: Unanswered) -> bool:
        return self._losses.can_go_on(
            error,
            "publisher of the mark",
            seconds_max=self.lost_seconds_max,
            clock=self.clock,
        )


@dataclass(slots=True)
class MarkPublisher(PublisherState[Engine]):
    """Publishes the mark again and again, until it is stopped.

    Several may run for the same store: the mark never steps back, and one that finds it where it
    should be writes nothing.

    Attributes:
        store: Whose mark.
        engine: Leads to the primary; one connection is in use for a moment each time.
        seconds: How long to pause in between; readers see events that much later, at most.
        lost_seconds_max: For how long to try again where nothing could be published.
        clock: Measures the pauses.

    Raises:
        ValueError: The pause is not positive.
    """

    _stopped: Event = field(default_factory=Event, init=False, repr=False)

    def run(self) -> None:
        """Publish until `stop` is called.

        Raises:
            CommitUnansweredError: No COMMIT has been answered for too long.
            DBAPIError: The connection has been lost for too long, or the server refuses it.
            TimeoutError: SQLAlchemy's: for too long the engine's pool had no connection to spare.
        """
        while not self._stopped.is_set():
            try:
                with self.engine.connect() as conn:
                    conn.execution_options(isolation_level="READ COMMITTED")
                    self._publish_on(conn)
            except UNANSWERED as error:
                if not self._can_go_on(error):
                    raise
            self._pause()

    def stop(self) -> None:
        """Let `run` end, in whatever thread it is, at once if it pauses."""
        self._stopped.set()

    def _pause(self) -> None:
        if isinstance(self.clock, SystemClock):
            self._stopped.wait(self.seconds)
        elif not self._stopped.is_set():
            self.clock.sleep(self.seconds)  # a clock of tests: nobody has to wait
