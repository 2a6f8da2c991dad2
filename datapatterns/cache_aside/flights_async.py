"""One load for all tasks of an event loop that ask for the same entry at once."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from datapatterns.cache_aside.flights import Turns
from datapatterns.cache_aside.steps import Outcome


class AsyncFlight(NamedTuple):
    """A load under way, as `Flight`."""

    task: asyncio.Task[Outcome[Any]]
    kind: object
    tags: Sequence[str]
    turns: Turns


class AsyncFlights(dict[str, AsyncFlight]):
    """The loads under way in this event loop, by entry."""

    def detach(self, entries: Sequence[str], tags: Sequence[str]) -> None:
        """Let nobody join these loads that are under way, as `Flights.detach`."""
        for entry in entries:
            self.pop(entry, None)
        for entry, flight in [*self.items()] if tags else []:
            if not set(tags).isdisjoint(flight.tags):
                self.pop(entry, None)
