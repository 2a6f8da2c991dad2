"""Import a chunk of events, beside COPY of the same columns by hand."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import count
from uuid import uuid4

import msgspec
from sqlalchemy import URL

from benchmarks.baskets import DATA, create_bare, driver
from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.event_sourcing import ImportedEvent, NewEvent, StreamId

EVENTS = 20_000
STREAMS = 200


@contextmanager
def claim() -> Iterator[Claim]:
    """From dictionaries of Python to committed rows, one chunk a round."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        create_bare(layer.engine)
        yield Claim(
            f"import {EVENTS:,} events of {STREAMS} streams",
            "events",
            [
                Contestant("store.import_events", "ours", _ours(layer)),
                Contestant("COPY of the same columns", "limit", _limit(stack, layer.engine.url)),
            ],
        )


def _ours(layer: DataLayer) -> Callable[[], int]:
    chunks = count(1)

    def run() -> int:
        chunk = next(chunks)
        streams = [StreamId("basket", f"{chunk}-{number}") for number in range(STREAMS)]
        new = [
            ImportedEvent(streams[number % STREAMS], NewEvent("item.scanned", DATA))
            for number in range(EVENTS)
        ]
        with layer.engine.begin() as conn:
            return layer.events.import_events(conn, new, source="tills", chunk=chunk)

    return run


def _limit(stack: ExitStack, url: URL) -> Callable[[], int]:
    conn = stack.enter_context(driver(url, autocommit=True))
    chunks = count(1)
    encode = msgspec.json.encode

    def run() -> int:
        first = next(chunks) * STREAMS
        now = datetime.now(UTC).isoformat()
        with (
            conn.cursor() as cursor,
            cursor.copy(
                "COPY bare (stream_id, version, at, event_id, type_id, data) FROM STDIN"
            ) as copy,
        ):
            for page in range(0, EVENTS, 2_000):
                rows = [
                    f"{first + number % STREAMS}\t{number // STREAMS + 1}\t{now}\t{uuid4()}\t1\t"
                    + encode(DATA).decode().replace("\\", "\\\\")
                    + "\n"
                    for number in range(page, min(page + 2_000, EVENTS))
                ]
                copy.write("".join(rows))
        return EVENTS

    return run
