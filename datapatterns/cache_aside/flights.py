"""One load for all callers of this process that ask for the same entry at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Generic, TypeVar

from datapatterns.cache_aside.steps import Outcome

T = TypeVar("T")


class Turns:
    """Counts the moments at which what a load under way will bring may be settled."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def begin(self) -> None:
        """Say, before Redis is asked for a value or to store one, that whoever comes is late.

        Once it has answered, the entry may be invalidated before the load has landed. Whoever
        asks after that must not be given what was read or stored before.
        """
        self.count += 1


@dataclass(slots=True, eq=False)
class Flight(Generic[T]):
    """A load under way.

    Attributes:
        kind: What the value is decoded by; others want another value.
        tags: On which the value depends.
        turns: How far it has come.
        landed: Set when there is an outcome.
    """

    kind: object
    tags: Sequence[str] = ()
    turns: Turns = field(default_factory=Turns)
    landed: Event = field(default_factory=Event)
    outcome: Outcome[T] | None = None
    error: Exception | None = None


class Flights:
    """The loads under way in this process, by entry."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._flights: dict[str, Flight[Any]] = {}

    def join(
        self,
        entry: str,
        go: Callable[[Turns], Outcome[T]],
        *,
        wait_seconds: float,
        kind: object = None,
        tags: Sequence[str] = (),
    ) -> Outcome[T] | None:
        """Return what ``go`` returns here or for another caller, or None if that takes too long.

        A caller takes another's outcome only if it cannot be older than the call: it was stored or
        found after this caller had asked, so that no invalidation had come, or its load began
        then. Errors of the loader reach everybody who waited for it.
        """
        flight, turn, leads = self._lead_or_join(entry, kind, tags)
        if leads:
            return self._fly(entry, flight, go)
        if not flight.landed.wait(wait_seconds):
            return None
        outcome = _outcome_of(flight)
        if outcome is not None and outcome.may_be_shared and turn < flight.turns.count:
            return outcome
        # Whoever leads now began after this caller asked.
        flight, _, leads = self._lead_or_join(entry, kind, tags)
        if leads:
            return self._fly(entry, flight, go)
        return _outcome_of(flight) if flight.landed.wait(wait_seconds) else None

    def detach(self, entries: Iterable[str], tags: Iterable[str] = ()) -> None:
        """Let nobody join these loads that are under way: they may be older than a write.

        Args:
            entries: What is loaded.
            tags: On which what is loaded depends.
        """
        changed = frozenset(tags)
        with self._lock:
            for entry in entries:
                self._flights.pop(entry, None)
            if changed:
                for entry, flight in [*self._flights.items()]:
                    if not changed.isdisjoint(flight.tags):
                        del self._flights[entry]

    def _lead_or_join(
        self, entry: str, kind: object, tags: Sequence[str]
    ) -> tuple[Flight[Any], int, bool]:
        with self._lock:
            flight = self._flights.get(entry)
            if flight is not None and flight.kind == kind:
                return flight, flight.turns.count, False
            flight = self._flights[entry] = Flight(kind, tags)
            return flight, 0, True

    def _fly(self, entry: str, flight: Flight[T], go: Callable[[Turns], Outcome[T]]) -> Outcome[T]:
        try:
            flight.outcome = go(flight.turns)
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
