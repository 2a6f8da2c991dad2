"""Try a task again and again, each time in a transaction of its own; sync and async, one rule."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from datapatterns.clock import Clock
from datapatterns.errors import OutcomeUnknownError
from datapatterns.outcomes import find_unknown_outcome
from datapatterns.transactions import transaction

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_SERIALISATION: Final = ("40001", "40P01")
"""SQLSTATEs after which the same may succeed; a deadlock is ended by such an error, too."""


class Task(Protocol):
    """Something to be done once, however often it is tried."""

    @property
    def attempted(self) -> str:
        """What it is, in the words of an error message."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, although the last attempt has failed."""
        ...

    @property
    def unknown(self) -> OutcomeUnknownError | None:
        """How the answer to a COMMIT was lost whose fate is unknown so far."""
        ...

    def attempt(self, conn: Connection) -> None:
        """Do it, in a transaction that is then committed."""
        ...

    def outcome(self, unknown: OutcomeUnknownError) -> OutcomeUnknownError:
        """Return what to tell of it: by which ids it can be recognised."""
        ...

    def delay_after(self, error: Exception) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            Exception: The one given, or what it means, if there is no next attempt.
        """
        ...


def carry_out(task: Task, engine: Engine, clock: Clock) -> None:
    """Try ``task`` until an attempt is committed, or nothing is left to do, or it gives up."""
    with _explaining(task):
        while not task.is_done:
            try:
                with transaction(engine, attempted=task.attempted) as conn:
                    task.attempt(conn)
            except Exception as error:  # noqa: BLE001 -- it comes out again, unless it is one of few
                clock.sleep(task.delay_after(error))
            else:
                break


async def carry_out_async(task: Task, engine: "AsyncEngine") -> None:
    """Do as `carry_out`, on an async engine."""
    from datapatterns.aio import transaction as async_transaction  # noqa: PLC0415 -- an extra

    with _explaining(task):
        while not task.is_done:
            try:
                async with async_transaction(engine, attempted=task.attempted) as conn:
                    await conn.run_sync(task.attempt)
            except Exception as error:  # noqa: BLE001 -- as above
                await asyncio.sleep(task.delay_after(error))
            else:
                break


def is_serialisation_failure(error: Exception) -> bool:
    """Return whether the server has ended a transaction that may succeed if it is done again."""
    return isinstance(error, DBAPIError) and (
        getattr(error.orig, "sqlstate", None) in _SERIALISATION
    )


@contextmanager
def _explaining(task: Task) -> Iterator[None]:
    """Give what ends all attempts, such as a cancellation, the unknown outcome as its cause."""
    # Whoever calls may be handling that of another command.
    anothers = find_unknown_outcome(sys.exception())
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        found = find_unknown_outcome(error)
        unknown = task.unknown if found in {None, anothers} else found
        if unknown is not None:
            error.__cause__ = task.outcome(unknown)
        raise
