"""Append one event as a transaction of its own, beside a bare INSERT and ``eventsourcing``."""

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

CASES = (1, 8)
"""How many writers there are."""

OPERATIONS = 600
"""By all writers, in a round."""


@contextmanager
def claim(writers: int) -> Iterator[Claim]:
    """Every event is committed by itself, durably; each writer has a stream of its own."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url, each = layer.engine.url, OPERATIONS // writers
        create_bare(layer.engine)
        stack.enter_context(rival_recorder(url, create=True))
        ours, limit, rival = (
            stack.enter_context(Writers(partial(kind, operations=each), url, count=writers))
            for kind in (_ours, _limit, _rival)
        )
        yield Claim(
            f"append one event as a transaction of its own, {writers} at once",
            "appends",
            [
                Contestant("EventWriter.append", "ours", ours.run),
                Contestant("INSERT of the same row, autocommit", "limit", limit.run),
                Contestant("eventsourcing, recorder", "rival", rival.run),
            ],
        )


@contextmanager
def _ours(url: URL, writer: int, *, operations: int) -> Iterator[Batch]:
    store, numbers = EventStore(), count()
    with engine_of(url) as engine, EventWriter(store, engine) as events:

        def batch() -> int:
            stream = StreamId("basket", f"{writer}-{next(numbers)}")
            for version in range(operations):
                events.append(stream, [NewEvent("item.scanned", DATA)], expected_version=version)
            return operations

        yield batch


@contextmanager
def _limit(url: URL, writer: int, *, operations: int) -> Iterator[Batch]:
    streams = count(writer * 1_000_000)
    with driver(url, autocommit=True) as conn:

        def batch() -> int:
            stream = next(streams)
            for version in range(1, operations + 1):
                conn.execute(
                    "INSERT INTO bare (stream_id, version, at, event_id, type_id, data)"
                    " VALUES (%s, %s, clock_timestamp(), %s, 1, %s) RETURNING position",
                    (stream, version, uuid4(), PAYLOAD.decode()),
                    prepare=True,
                ).fetchone()
            return operations

        yield batch


@contextmanager
def _rival(url: URL, writer: int, *, operations: int) -> Iterator[Batch]:
    del writer
    with rival_recorder(url) as recorder:

        def batch() -> int:
            stream = uuid4()
            for version in range(operations):
                recorder.insert_events([StoredEvent(stream, version, "ItemScanned", PAYLOAD)])
            return operations

        yield batch
