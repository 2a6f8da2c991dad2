"""Import a chunk of events, beside COPY of the same columns by hand.

Both sides make the objects that they start from, and ids; the limit promises nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from struct import Struct
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

HEAD = Struct(">h iq iq iq i16s ii i")
CHUNKS = count(1)


@contextmanager
def claim(kind: str) -> Iterator[Claim]:
    """From what Python has to committed rows, one chunk a round."""
    new = _scanned if kind == "objects" else partial(NewEvent, "item.scanned", DATA)
    given = _scanned if kind == "objects" else lambda: DATA
    text, binary = Text(given), Binary(given)
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        create_bare(layer.engine)
        yield Claim(
            f"import {EVENTS:,} events of {STREAMS} streams, given as {kind}",
            "events",
            [
                Contestant("store.import_events", "ours", _ours(layer, new)),
                Contestant("COPY by hand", "limit", _limit(stack, layer.engine.url, text)),
                Contestant("binary COPY by hand", "limit", _limit(stack, layer.engine.url, binary)),
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


class Text:
    """COPY as everybody writes it."""

    options = ""
    begin, end = b"", b""

    def __init__(self, given: Callable[[], object]) -> None:
        self._given = given

    def block(self, numbers: range, first: int, now: datetime) -> bytes:
        """Return some rows."""
        encode, given, at = msgspec.json.encode, self._given, now.isoformat()
        rows = [
            f"{first + number % STREAMS}\t{number // STREAMS + 1}\t{at}\t{uuid4()}\t1\t"
            + encode(given()).decode().replace("\\", "\\\\")
            + "\n"
            for number in numbers
        ]
        return "".join(rows).encode()


class Binary(Text):
    """The same in the binary format, which the server reads faster."""

    options = " (FORMAT binary)"
    begin, end = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"

    def block(self, numbers: range, first: int, now: datetime) -> bytes:
        """Return some rows."""
        encode, given, pack = msgspec.json.encode, self._given, HEAD.pack
        at = (now - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        parts: list[bytes] = []
        for number in numbers:
            data = encode(given())
            place = 8, first + number % STREAMS, 8, number // STREAMS + 1, 8, at
            parts += (pack(6, *place, 16, uuid4().bytes, 4, 1, len(data)), data)
        return b"".join(parts)


def _limit(stack: ExitStack, url: URL, rows: Text) -> Callable[[], int]:
    conn = stack.enter_context(driver(url, autocommit=True))

    def run() -> int:
        first, now = next(CHUNKS) * STREAMS, datetime.now(UTC)
        columns = "stream_id, version, at, event_id, type_id, data"
        statement = f"COPY bare ({columns}) FROM STDIN{rows.options}"
        with conn.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(rows.begin)
            for page in range(0, EVENTS, 2_000):
                copy.write(rows.block(range(page, min(page + 2_000, EVENTS)), first, now))
            copy.write(rows.end)
        return EVENTS

    return run
