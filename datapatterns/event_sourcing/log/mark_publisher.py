"""The loop that publishes the high-water mark, so that readers of the published one see it move."""

import logging
from dataclasses import dataclass, field
from threading import Event

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from datapatterns.clock import SYSTEM_CLOCK, Clock, SystemClock
from datapatterns.errors import CommitUnansweredError
from datapatterns.event_sourcing.log.follower_state import is_lost
from datapatterns.event_sourcing.log.publishing import publish_mark
from datapatterns.event_sourcing.store import EventStore
from datapatterns.transactions import resuming

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class MarkPublisher:
    """Publishes the mark again and again, until it is stopped.

    Several may run for the same store: the mark never steps back, and one that finds it where it
    should be writes nothing.

    Attributes:
        store: Whose mark.
        engine: Leads to the primary; one connection is in use for a moment each time.
        seconds: How long to pause in between; readers see events that much later, at most.
        lost_seconds_max: For how long to try to get a lost connection back.
        clock: Measures the pauses.

    Raises:
        ValueError: The pause is not positive.
    """

    store: EventStore
    engine: Engine
    seconds: float = field(default=0.1, kw_only=True)
    lost_seconds_max: float = field(default=60, kw_only=True)
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True, repr=False)
    _stopped: Event = field(default_factory=Event, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"a pause of {self.seconds} s is none; let some time pass")

    def run(self) -> None:
        """Publish until `stop` is called.

        Raises:
            DBAPIError: The connection has been lost for too long, or the server refuses it.
        """
        lost_at: float | None = None
        while not self._stopped.is_set():
            try:
                self._publish()
                lost_at = None
            except CommitUnansweredError:
                logger.warning("a COMMIT of the published mark was not answered", exc_info=True)
            except DBAPIError as error:
                now = self.clock.monotonic()
                lost_at = now if lost_at is None else lost_at
                if not is_lost(error) or now - lost_at > self.lost_seconds_max:
                    raise
                logger.warning("the published mark stands still: no connection", exc_info=True)
            self._pause()

    def stop(self) -> None:
        """Let `run` end, in whatever thread it is, at once if it pauses."""
        self._stopped.set()

    def _publish(self) -> None:
        with self.engine.connect() as conn:
            conn.execution_options(isolation_level="READ COMMITTED")
            with resuming(conn, "publishing the mark"):
                publish_mark(conn, self.store)

    def _pause(self) -> None:
        if isinstance(self.clock, SystemClock):
            self._stopped.wait(self.seconds)
        elif not self._stopped.is_set():
            self.clock.sleep(self.seconds)  # a clock of tests: nobody has to wait
