"""Import a chunk of events, beside COPY of the same columns by hand.

Both sides make the objects that they start from, and ids; the limit promises nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import count
from uuid import uuid4

import msgspec
from sqlalchemy import URL

from benchmarks.baskets import DATA, MEMO, ItemScanned, create_bare, driver
from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.event_sourcing import ImportedEvent, NewEvent, StreamId

EVENTS = 20_000
STREAMS = 200
CASES = ("dictionaries", "objects")
"""What events are given as."""


@contextmanager
def claim(kind: str) -> Iterator[Claim]:
    """From what Python has to committed rows, one chunk a round."""
    new = _scanned if kind == "objects" else partial(NewEvent, "item.scanned", DATA)
    given = _scanned if kind == "objects" else lambda: DATA
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        create_bare(layer.engine)
        yield Claim(
            f"import {EVENTS:,} events of {STREAMS} streams, given as {kind}",
            "events",
            [
                Contestant("store.import_events", "ours", _ours(layer, new)),
                Contestant(
                    "COPY of the same columns", "limit", _limit(stack, layer.engine.url, given)
                ),
            ],
        )


def _scanned() -> ItemScanned:
    return ItemScanned(product_id=819312, quantity=1, cents=149, memo=MEMO)


def _ours(layer: DataLayer, new: Callable[[], object]) -> Callable[[], int]:
    chunks = count(1)

    def run() -> int:
        chunk = next(chunks)
        streams = [StreamId("basket", f"{chunk}-{number}") for number in range(STREAMS)]
        events = [ImportedEvent(streams[n % STREAMS], new()) for n in range(EVENTS)]
        with layer.engine.begin() as conn:
            return layer.events.import_events(conn, events, source="tills", chunk=chunk)

    return run


def _limit(stack: ExitStack, url: URL, given: Callable[[], object]) -> Callable[[], int]:
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
                    + encode(given()).decode().replace("\\", "\\\\")
                    + "\n"
                    for number in range(page, min(page + 2_000, EVENTS))
                ]
                copy.write("".join(rows))
        return EVENTS

    return run
