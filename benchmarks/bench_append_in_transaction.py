"""Append one event in the caller's transaction, beside what SQLAlchemy takes for one INSERT."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from uuid import uuid4

from sqlalchemy import MetaData, Table, func, insert
from sqlalchemy.engine import Engine

from benchmarks.baskets import DATA, create_bare
from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.event_sourcing import NewEvent, StreamId

OPERATIONS = 300


@contextmanager
def claim() -> Iterator[Claim]:
    """BEGIN, the event, COMMIT: three round trips each, one writer."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        create_bare(layer.engine)
        yield Claim(
            "append one event in a transaction of SQLAlchemy's",
            "transactions",
            [
                Contestant("begin, store.append, commit", "ours", _ours(layer)),
                Contestant("begin, Core's insert, commit", "limit", _limit(layer.engine)),
            ],
        )


def _ours(layer: DataLayer) -> Callable[[], int]:
    numbers = count()

    def run() -> int:
        stream = StreamId("basket", str(next(numbers)))
        for version in range(OPERATIONS):
            with layer.engine.begin() as conn:
                layer.events.append(
                    conn, stream, [NewEvent("item.scanned", DATA)], expected_version=version
                )
        return OPERATIONS

    return run


def _limit(engine: Engine) -> Callable[[], int]:
    bare = Table("bare", MetaData(), autoload_with=engine)
    statement = insert(bare).returning(bare.c.position)
    numbers = count()

    def run() -> int:
        stream = next(numbers)
        for version in range(1, OPERATIONS + 1):
            with engine.begin() as conn:
                conn.execute(
                    statement.values(at=func.clock_timestamp()),
                    {
                        "stream_id": stream,
                        "version": version,
                        "event_id": uuid4(),
                        "type_id": 1,
                        "data": DATA,
                    },
                ).scalar_one()
        return OPERATIONS

    return run
