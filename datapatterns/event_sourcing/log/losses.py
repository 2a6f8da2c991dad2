"""For how long a loop bears that it gets no answer."""

import logging
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.clock import Clock
from datapatterns.errors import CommitUnansweredError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Losses:
    """Since when a loop has had no answer."""

    since: float | None = None

    def end(self) -> None:
        """There was an answer."""
        self.since = None

    def can_go_on(
        self,
        error: DBAPIError | CommitUnansweredError,
        loop: str,
        *,
        seconds_max: float,
        clock: Clock,
    ) -> bool:
        """Return whether trying again may help, and has not been tried for too long."""
        now = clock.monotonic()
        self.since = now if self.since is None else self.since
        if not _is_lost(error) or now - self.since > seconds_max:
            return False
        logger.warning("%s has got no answer", loop, exc_info=error)
        return True


def _is_lost(error: DBAPIError | CommitUnansweredError) -> bool:
    if isinstance(error, CommitUnansweredError):
        return True
    return error.connection_invalidated or isinstance(error, OperationalError)
