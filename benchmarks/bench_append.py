"""Append one event and commit, beside a bare INSERT and beside ``eventsourcing``."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from uuid import uuid4

import msgspec
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from sqlalchemy import Engine

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.event_sourcing import NewEvent, StreamId

OPERATIONS = 300
DATA = {"product_id": 819312, "quantity": 1, "cents": 149, "memo": "m" * 100}
PAYLOAD = msgspec.json.encode(DATA)


@contextmanager
def claim() -> Iterator[Claim]:
    """Every event is committed by itself, durably, on one connection."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        yield Claim(
            "append one event, commit",
            "appends",
            [
                Contestant("store.append", "ours", _ours(stack, layer)),
                Contestant("INSERT, nothing checked", "limit", _limit(stack, layer.engine)),
                Contestant("eventsourcing, recorder", "rival", _rival(stack, layer.engine)),
            ],
        )


def _ours(stack: ExitStack, layer: DataLayer) -> Callable[[], int]:
    conn = stack.enter_context(layer.engine.connect())
    numbers = count()

    def run() -> int:
        stream = StreamId("basket", str(next(numbers)))
        for version in range(OPERATIONS):
            layer.events.append(
                conn, stream, [NewEvent("item.scanned", DATA)], expected_version=version
            )
            conn.commit()
        return OPERATIONS

    return run


def _limit(stack: ExitStack, engine: Engine) -> Callable[[], int]:
    pooled = stack.enter_context(engine.connect())
    conn = pooled.connection.driver_connection
    assert conn is not None
    conn.execute(
        "CREATE TABLE bare (position bigserial PRIMARY KEY, stream uuid, version int, data jsonb,"
        " UNIQUE (stream, version))"
    )
    conn.commit()

    def run() -> int:
        stream = uuid4()
        for version in range(OPERATIONS):
            conn.execute(
                "INSERT INTO bare (stream, version, data) VALUES (%s, %s, %s)",
                (stream, version, PAYLOAD.decode()),
                prepare=True,
            )
            conn.commit()
        return OPERATIONS

    return run


def _rival(stack: ExitStack, engine: Engine) -> Callable[[], int]:
    url = engine.url
    datastore = PostgresDatastore(
        str(url.database), str(url.query["host"]), str(url.query["port"]), str(url.username), ""
    )
    stack.callback(datastore.close)
    recorder = PostgresApplicationRecorder(datastore)
    recorder.create_table()

    def run() -> int:
        stream = uuid4()
        for version in range(OPERATIONS):
            recorder.insert_events([StoredEvent(stream, version, "ItemScanned", PAYLOAD)])
        return OPERATIONS

    return run
