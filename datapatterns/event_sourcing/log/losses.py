"""For how long a loop bears that it has no connection."""

import logging
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.clock import Clock

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Losses:
    """Since when a loop has had no answer."""

    since: float | None = None

    def end(self) -> None:
        """There was an answer."""
        self.since = None

    def can_go_on(self, error: DBAPIError, loop: str, *, seconds_max: float, clock: Clock) -> bool:
        """Return whether trying again may help, and has not been tried for too long."""
        now = clock.monotonic()
        self.since = now if self.since is None else self.since
        is_lost = error.connection_invalidated or isinstance(error, OperationalError)
        if not is_lost or now - self.since > seconds_max:
            return False
        logger.warning("%s has lost its connection", loop, exc_info=error)
        return True
