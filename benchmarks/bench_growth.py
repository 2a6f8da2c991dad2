"""Append to a store of 10 million events, beside one of 100 thousand."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from random import Random

from sqlalchemy import Engine, create_engine, text

from benchmarks.baskets import DATA, PAYLOAD
from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.event_sourcing import ANY, EventStore, NewEvent, StreamId
from datapatterns.migrations import Migrations

CASES = ("new streams", "old streams")
LARGE_EVENTS = int(os.environ.get("DATAPATTERNS_GROWTH_EVENTS", "10_000_000"))
SMALL_EVENTS = LARGE_EVENTS // 100
EVENTS_PER_STREAM = 10
OPERATIONS = 500

_FILL = (
    "INSERT INTO datapatterns.event_type (name, schema_version) VALUES ('item.scanned', 1)",
    """
INSERT INTO datapatterns.stream (tenant, category, key, version, created_at, last_at)
SELECT '', 'basket', n, :per_stream, now(), now() FROM generate_series(1, :streams) AS n
""",
    # Streams grow side by side, as they do in time: the events of one lie far apart.
    """
INSERT INTO datapatterns.event (stream_id, version, at, event_id, type_id, data)
SELECT n % :streams + 1, n / :streams + 1, now(), gen_random_uuid(), 1, CAST(:data AS json)
  FROM generate_series(0, :events - 1) AS n
""",
)


@contextmanager
def claim(case: str) -> Iterator[Claim]:
    """One writer, each append a transaction; the old streams are chosen at random among all."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        large, small = (
            _store(stack, layer.engine, name, events)
            for name, events in (("large", LARGE_EVENTS), ("small", SMALL_EVENTS))
        )
        yield Claim(
            f"append one event to {case}",
            "appends",
            [
                Contestant(
                    f"to {LARGE_EVENTS:,} events",
                    "ours",
                    _appends(stack, large, case, LARGE_EVENTS),
                ),
                Contestant(
                    f"to {SMALL_EVENTS:,} events",
                    "limit",
                    _appends(stack, small, case, SMALL_EVENTS),
                ),
            ],
        )


def _store(stack: ExitStack, main: Engine, name: str, events: int) -> Engine:
    with main.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text(f"CREATE DATABASE {name}"))
    url = main.url.set(database=name)
    Migrations({name: url}).upgrade()
    engine = create_engine(url)
    stack.callback(engine.dispose)
    values = {
        "streams": max(1, events // EVENTS_PER_STREAM),
        "per_stream": EVENTS_PER_STREAM,
        "events": events,
        "data": PAYLOAD.decode(),
    }
    with engine.begin() as conn:
        for statement in _FILL:
            conn.execute(text(statement), values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM ANALYZE"))
        conn.execute(text("CHECKPOINT"))
    return engine


def _appends(stack: ExitStack, engine: Engine, case: str, events: int) -> Callable[[], int]:
    store, numbers, chance = EventStore(), count(), Random(events)  # noqa: S311 -- not secret
    conn = stack.enter_context(engine.connect())
    conn = conn.execution_options(isolation_level="AUTOCOMMIT")
    streams = max(1, events // EVENTS_PER_STREAM)

    def run() -> int:
        for _ in range(OPERATIONS):
            key = (
                f"new-{next(numbers)}" if case == "new streams" else str(chance.randint(1, streams))
            )
            store.append(
                conn,
                StreamId("basket", key),
                [NewEvent("item.scanned", DATA)],
                expected_version=ANY,
            )
        return OPERATIONS

    return run
