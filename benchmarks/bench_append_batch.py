"""Append 10 and 100 events at once, beside one INSERT of as many rows and ``eventsourcing``."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from sqlalchemy import URL

from benchmarks.baskets import (
    DATA,
    PAYLOAD,
    create_bare,
    driver,
    engine_of,
)
from benchmarks.interleaving import Claim, Contestant
from benchmarks.rival import rival_recorder
from benchmarks.writers import Batch, Writers
from datapatterns import DataLayer
from datapatterns.event_sourcing import EventStore, EventWriter, NewEvent, StreamId

CASES = ((1, 10), (8, 10), (1, 100), (8, 100))
"""How many writers there are, and how many events they append at once."""

EVENTS = 6_000
"""By all writers, in a round."""

_INSERT = """
INSERT INTO bare (stream_id, version, at, event_id, type_id, data)
SELECT %s, u.version, clock_timestamp(), u.event_id, 1, u.data::json
  FROM unnest(%s::bigint[], %s::uuid[], %s::text[]) AS u (version, event_id, data)
"""


@contextmanager
def claim(case: tuple[int, int]) -> Iterator[Claim]:
    """Every append is a transaction; each writer has a stream of its own."""
    writers, events = case
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url, each = layer.engine.url, max(1, EVENTS // writers // events)
        create_bare(layer.engine)
        stack.enter_context(rival_recorder(url, create=True))
        ours, limit, rival = (
            stack.enter_context(
                Writers(partial(kind, appends=each, events=events), url, count=writers)
            )
            for kind in (_ours, _limit, _rival)
        )
        yield Claim(
            f"append {events} events at once, {writers} writers",
            "events",
            [
                Contestant("EventWriter.append", "ours", ours.run),
                Contestant("INSERT .. SELECT unnest, autocommit", "limit", limit.run),
                Contestant("eventsourcing, recorder", "rival", rival.run),
            ],
        )


@contextmanager
def _ours(url: URL, writer: int, *, appends: int, events: int) -> Iterator[Batch]:
    numbers = count()
    with engine_of(url) as engine, EventWriter(EventStore(), engine) as writes:

        def batch() -> int:
            stream = StreamId("basket", f"{writer}-{next(numbers)}")
            for number in range(appends):
                new = [NewEvent("item.scanned", DATA) for _ in range(events)]
                writes.append(stream, new, expected_version=number * events)
            return appends * events

        yield batch


@contextmanager
def _limit(url: URL, writer: int, *, appends: int, events: int) -> Iterator[Batch]:
    streams = count(writer * 1_000_000)
    with driver(url, autocommit=True) as conn:

        def batch() -> int:
            stream = next(streams)
            for number in range(appends):
                versions = list(range(number * events + 1, (number + 1) * events + 1))
                ids = [uuid4() for _ in versions]
                data = [PAYLOAD.decode() for _ in versions]
                conn.execute(_INSERT, (stream, versions, ids, data), prepare=True)
            return appends * events

        yield batch


@contextmanager
def _rival(url: URL, writer: int, *, appends: int, events: int) -> Iterator[Batch]:
    del writer
    with rival_recorder(url) as recorder:

        def batch() -> int:
            stream = uuid4()
            for number in range(appends):
                recorder.insert_events(
                    [
                        StoredEvent(stream, number * events + place, "ItemScanned", PAYLOAD)
                        for place in range(events)
                    ]
                )
            return appends * events

        yield batch
