"""For how long a loop bears that it gets no answer."""

import logging
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from datapatterns.clock import Clock
from datapatterns.errors import CommitUnansweredError

logger = logging.getLogger(__name__)

Unanswered: TypeAlias = DBAPIError | PoolTimeoutError | CommitUnansweredError
UNANSWERED: Final = (DBAPIError, PoolTimeoutError, CommitUnansweredError)
"""What may say that no answer came: from the database, or for a place in the engine's pool."""


@dataclass(slots=True)
class Losses:
    """Since when a loop has had no answer."""

    since: float | None = None

    def end(self) -> None:
        """There was an answer."""
        self.since = None

    def can_go_on(
        self,
        error: Unanswered,
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


def _is_lost(error: Unanswered) -> bool:
    if not isinstance(error, DBAPIError):
        return True
    return error.connection_invalidated or isinstance(error, OperationalError)
