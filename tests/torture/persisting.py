"""Connections that break, and how those who write find out what became of their COMMIT."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from psycopg.errors import DeadlockDetected
from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import EventIdsReusedError, VersionConflictError
from datapatterns.testing import wait_until
from tests.torture.plan import ENOUGH_SECONDS

_DRAWN = text("SELECT coalesce(pg_sequence_last_value('datapatterns.event_position'), 0)")


@contextmanager
def connected(url: URL, name: str, *, options: str = "") -> Iterator[Engine]:
    """Make an engine of one connection, called ``name``."""
    arguments = {"application_name": name, "options": options}
    engine = create_engine(url, pool_size=1, max_overflow=0, connect_args=arguments)
    yield engine
    engine.dispose()


def is_deadlock(error: DBAPIError) -> bool:
    """Tell whether the server chose this transaction, so that nothing of it is stored."""
    return isinstance(error.orig, DeadlockDetected)


def insist(attempt: Callable[[], bool]) -> bool:
    """Attempt it until the server answers; return what it says.

    Raises:
        TimeoutError: It never did.
    """

    def answer() -> tuple[bool] | None:
        try:
            return (attempt(),)
        except DBAPIError:
            return None  # the server is being started

    return wait_until(answer, deadline_seconds=ENOUGH_SECONDS)[0]


def overlap(conn: Connection, *, positions: int, seconds_max: float) -> None:
    """Wait until the others have drawn so many positions, or not so many in all that time.

    This is the workload: a transaction that is still open when others, behind it, commit.
    """
    begun = conn.scalar(_DRAWN)
    with suppress(TimeoutError):
        wait_until(lambda: conn.scalar(_DRAWN) >= begun + positions, deadline_seconds=seconds_max)


def found_stored(
    engine: Engine, append: Callable[[Connection], Sequence[bool]]
) -> tuple[bool, bool]:
    """Append again what may have been committed; return whether it is stored, and was before.

    Args:
        engine: Leads to the database.
        append: Does it with the same ids; tells of each append whether it was a repetition.
    """
    repeated = False

    def attempt() -> bool:
        nonlocal repeated
        try:
            with engine.begin() as conn:
                repeated = all(append(conn))
        except (VersionConflictError, EventIdsReusedError):
            return False  # had it been committed, it would have been recognised
        return True

    return insist(attempt), repeated
