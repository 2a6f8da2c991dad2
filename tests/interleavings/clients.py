"""Clients that append with an id of their own, again and again while nobody answers (E4)."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from datapatterns.event_sourcing import EventStore, StreamId
from datapatterns.testing.interleaving import Outcome
from tests.interleavings.designs.design import Tasks

Way: TypeAlias = Callable[[Engine, StreamId, UUID], int]
"""Appends one event with this id, until it is answered; returns the version."""


class Client:
    """One with one command, to be carried out once."""

    def __init__(self, gated: Engine, plain: Engine, way: Way) -> None:
        self._gated, self._plain, self._way = gated, plain, way
        self._store = EventStore()
        self._stream = StreamId("client", "none")

    def tasks(self) -> Tasks:
        self._stream = StreamId("client", uuid4().hex)
        return {"client": partial(self._way, self._gated, self._stream, uuid4())}

    def it_happened_once(self, outcome: Outcome) -> None:
        with self._plain.begin() as conn:
            events = self._store.read_stream(conn, self._stream)
        assert len(events) == 1, f"one command, {len(events)} events"
        assert outcome.results == {"client": 1}, f"the client believes {outcome.errors}"


def until_answered(attempt: Callable[[], int]) -> int:
    """Try three times at most."""
    for _ in range(3):
        try:
            return attempt()
        except OperationalError:
            continue
    raise TimeoutError
