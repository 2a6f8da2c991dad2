"""One load for all callers of this process that ask for the same entry at once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Generic, TypeVar

from datapatterns.cache_aside.flow import Outcome

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """A load under way."""

    landed: Event = field(default_factory=Event)
    outcome: Outcome[T] | None = None
    error: Exception | None = None


class Flights:
    """The loads under way in this process, by entry."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._flights: dict[str, Flight[Any]] = {}

    def join(
        self, entry: str, go: Callable[[], Outcome[T]], *, wait_seconds: float
    ) -> Outcome[T] | None:
        """Return what ``go`` returns here or for another caller, or None if that takes too long.

        A caller takes another's outcome only if it cannot be older than the call: it was stored,
        so that no invalidation had come, or its load began after this caller had asked. Errors of
        the loader reach everybody who waited for it.
        """
        flight, leads = self._lead_or_join(entry)
        if leads:
            return self._fly(entry, flight, go)
        if not flight.landed.wait(wait_seconds):
            return None
        if (outcome := _outcome_of(flight)) is not None and outcome.may_be_shared:
            return outcome
        # Whoever leads now began after this caller asked.
        flight, leads = self._lead_or_join(entry)
        if leads:
            return self._fly(entry, flight, go)
        return _outcome_of(flight) if flight.landed.wait(wait_seconds) else None

    def detach(self, entry: str) -> None:
        """Let nobody join the load of ``entry`` that is under way: it may be older than a write."""
        with self._lock:
            self._flights.pop(entry, None)

    def _lead_or_join(self, entry: str) -> tuple[Flight[Any], bool]:
        with self._lock:
            flight = self._flights.get(entry)
            if flight is not None:
                return flight, False
            flight = self._flights[entry] = Flight()
            return flight, True

    def _fly(self, entry: str, flight: Flight[T], go: Callable[[], Outcome[T]]) -> Outcome[T]:
        try:
            flight.outcome = go()
        except Exception as error:
            flight.error = error
            raise
        else:
            return flight.outcome
        finally:
            with self._lock:
                if self._flights.get(entry) is flight:
                    del self._flights[entry]
            flight.landed.set()


def _outcome_of(flight: Flight[T]) -> Outcome[T] | None:
    if flight.error is not None:
        raise flight.error
    return flight.outcome
