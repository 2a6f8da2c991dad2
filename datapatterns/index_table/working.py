"""One of several workers: takes changes in for indexes that are kept behind their writers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import DataPatternsError, UnavailableError
from datapatterns.index_table.entries import CaughtUp
from datapatterns.index_table.index import IndexTable
from datapatterns.index_table.lagging import has_work, read_lag
from datapatterns.telemetry import SILENT, Observer
from datapatterns.transactions import fresh_reads, looking, resuming

logger = logging.getLogger(__name__)

PAUSE_SECONDS_MIN: Final = 0.02
PAUSE_SECONDS_MAX: Final = 0.25
"""So long it pauses at most while nothing changes; a change is taken in that much later."""

REST_SECONDS_MIN: Final = 0.25
REST_SECONDS_MAX: Final = 60.0
"""So long an index is left alone at most after it has failed."""

_NOT_ANSWERING: Final = ("08", "53", "57P")
"""SQLSTATEs of a connection that broke, a server that is full, and one that shuts down."""

TELL_SECONDS: Final = 10.0
"""How often the observer is told how far each index is behind."""


@dataclass(slots=True)
class _Rest:
    """Until when an index is left alone, and for how long the last time."""

    until: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class IndexWorker:
    """Takes changes in for indexes of mode ``async``; any number of them share the work.

    Who comes second to an index leaves it alone. For one thread.

    Attributes:
        indexes: What is kept.
        clock: What pauses go by.
        observer: Is told of changes that were taken in, of failures, and how far indexes are
            behind.
    """

    indexes: Sequence[IndexTable]
    clock: Clock = SYSTEM_CLOCK
    observer: Observer = SILENT
    _rests: dict[str, _Rest] = field(default_factory=dict, init=False, repr=False)
    _troubles: dict[str, Exception] = field(default_factory=dict, init=False, repr=False)
    _pause: float = field(default=0.0, init=False, repr=False)
    _tell_at: float = field(default=0.0, init=False, repr=False)

    @property
    def troubles(self) -> Mapping[str, Exception]:
        """Why indexes are not kept by this worker now, by their names."""
        return dict(self._troubles)

    def step(self, engine: Engine) -> float:
        """Take in what is pending for each index; return how many seconds to pause.

        Raises:
            CommitUnansweredError: The answer to a COMMIT was lost; step again.
            DBAPIError: The database does not answer; step again after a while.
        """
        telling = self.clock.monotonic() >= self._tell_at
        if telling:
            self._tell_at = self.clock.monotonic() + TELL_SECONDS
        has_moved = False
        for index in self.indexes:
            rest = self._rests.setdefault(index.name, _Rest())
            if self.clock.monotonic() >= rest.until:
                has_moved |= self._take(engine, index, rest, telling=telling)
        grown = 2 * max(self._pause, PAUSE_SECONDS_MIN / 2)
        self._pause = PAUSE_SECONDS_MIN if has_moved else min(grown, PAUSE_SECONDS_MAX)
        return self._pause

    def finish(self, engine: Engine) -> None:
        """Take in all that has been committed by now; who is at it is waited for."""
        for index in self.indexes:
            self._take(engine, index, self._rests.setdefault(index.name, _Rest()), waits=True)

    def _take(
        self,
        engine: Engine,
        index: IndexTable,
        rest: _Rest,
        *,
        telling: bool = False,
        waits: bool = False,
    ) -> bool:
        """Do what is due for one index; a failure becomes a rest, unless it is the database's."""
        began = self.clock.monotonic()
        try:
            done = self._catch_up(engine, index, telling=telling, waits=waits)
        except UnavailableError:
            raise
        except (DataPatternsError, DBAPIError) as error:
            if _is_lost(error):
                raise
            self._fail(index, rest, error)
            return False
        rest.seconds = 0.0
        self._troubles.pop(index.name, None)
        if done is None:
            return False
        took = self.clock.monotonic() - began
        self.observer.duration("datapatterns.index.catch_up", took, index=index.name)
        self.observer.count(
            "datapatterns.index.entries", done.entries_written + done.entries_removed,
            index=index.name,
        )  # fmt: skip
        if done.is_rebuilt:
            # Where changes go unlogged, each time is like this: no more than half of the time.
            rest.until = self.clock.monotonic() + took
        return True

    def _catch_up(
        self, engine: Engine, index: IndexTable, *, telling: bool, waits: bool
    ) -> CaughtUp | None:
        with fresh_reads(engine) as conn:
            with looking(conn):
                if not has_work(conn, index.definition):
                    return None
                if telling:
                    lag = read_lag(conn, index.definition)
                    self.observer.duration(
                        "datapatterns.index.behind", lag.behind_seconds, index=index.name
                    )
            with resuming(conn, f"taking changes in for index {index.name}"):
                return index.catch_up(conn, skip_locked=not waits)

    def _fail(self, index: IndexTable, rest: _Rest, error: Exception) -> None:
        rest.seconds = min(max(2 * rest.seconds, REST_SECONDS_MIN), REST_SECONDS_MAX)
        rest.until = self.clock.monotonic() + rest.seconds
        self._troubles[index.name] = error
        self.observer.count("datapatterns.index.failed", index=index.name)
        reason = next(iter(str(getattr(error, "orig", None) or error).splitlines()), "")
        known = {"index": index.name, "rest_seconds": rest.seconds}
        known["reason"] = f"{type(error).__name__}: {reason}"
        logger.warning("an index does not take changes in", extra=known)


def _is_lost(error: Exception) -> bool:
    """Return whether the database does not answer, which is no index's fault."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return bool(state.startswith(_NOT_ANSWERING))
