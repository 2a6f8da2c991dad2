"""Connections that break, and how those who write find out what became of their COMMIT."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from psycopg.errors import DeadlockDetected
from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import EventIdsReusedError, VersionConflictError
from tests.torture.plan import ENOUGH_SECONDS

PAUSE_SECONDS = 0.02


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
    deadline = time.monotonic() + ENOUGH_SECONDS
    while True:
        try:
            return attempt()
        except DBAPIError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer for {ENOUGH_SECONDS} s") from error
            time.sleep(PAUSE_SECONDS)  # the server is being started


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
