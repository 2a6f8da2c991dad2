"""Wait until a view contains a write."""

from sqlalchemy import Engine

from datapatterns.change_log import ChangeLog, ChangeToken
from datapatterns.clock import Clock
from datapatterns.errors import ConsumerMissingError, ViewBehindError, ViewMissingError
from datapatterns.materialized_view.definition import ViewDefinition

_FIRST_PAUSE_SECONDS = 0.005
_PAUSE_SECONDS_MAX = 0.25


def wait_for(
    engine: Engine,
    view: ViewDefinition,
    token: ChangeToken,
    *,
    timeout_seconds: float,
    clock: Clock,
) -> None:
    """Return as soon as the view contains the transaction that ``token`` stands for.

    It holds no connection while it waits, and refreshes nothing.

    Raises:
        ValueError: The token comes from another cluster.
        ViewBehindError: It does not after ``timeout_seconds``.
        ViewMissingError: The view was not created.
    """
    names, log = view.names, ChangeLog(view.names.schema)
    deadline, pause = clock.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
    while not _contains(engine, log, names.consumer, token, names.view):
        left = deadline - clock.monotonic()
        if left <= 0:
            raise ViewBehindError(names.view, timeout_seconds=timeout_seconds)
        clock.sleep(min(pause, left))
        pause = min(2 * pause, _PAUSE_SECONDS_MAX)


def _contains(engine: Engine, log: ChangeLog, consumer: str, token: ChangeToken, view: str) -> bool:
    with engine.connect() as conn:
        try:
            return log.has_consumed(conn, consumer, token)
        except ConsumerMissingError as error:
            raise ViewMissingError(view) from error
