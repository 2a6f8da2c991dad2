"""A basket into which things are scanned; each schedule has one of its own, as events stay."""

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Engine

from datapatterns.event_sourcing import Aggregate, EventStore, EventTypes, StreamId, applies, every
from tests.fixtures.effort import THOROUGH

PREEMPTIONS = 3 if THOROUGH else 2

WITHOUT_VERSIONS = ("datapatterns.append_events", "(s.version = p_expected OR p_expected = -1)")
"""Where appends are compared with the version that they expect."""

types = EventTypes()
store = EventStore(types=types)


@types.event("interleaved.scanned")
@dataclass(frozen=True, slots=True)
class Scanned:
    cents: int


class Basket(Aggregate, category="basket", snapshot=every(1)):
    total = 0

    @applies
    def _(self, e: Scanned) -> None:
        self.total += e.cents

    def scan(self, cents: int) -> None:
        self.emit(Scanned(cents))


def new_stream() -> StreamId:
    return StreamId("interleaved", uuid4().hex)


def append(engine: Engine, stream: StreamId, *, expected: int) -> int:
    with engine.begin() as conn:
        return store.append(conn, stream, [Scanned(5)], expected_version=expected).version
