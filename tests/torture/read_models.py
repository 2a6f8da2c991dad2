"""A shop under torture: its read models, who writes, who works, and what should come of it."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from random import Random
from uuid import uuid4

from sqlalchemy import BigInteger, Executable, FromClause, Table, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns import DataLayer, UnavailableError
from datapatterns.cqrs import (
    DELETE,
    Projection,
    RedisChanges,
    RedisProjection,
    SetProjection,
    on,
    upsert,
)
from datapatterns.event_sourcing import ANY, EventStore, RecordedEvent, StreamId, event
from datapatterns.runtime import stopped_by_signals

LEASE_SECONDS = 1.0
PRODUCTS = 40
MESSAGE_EVERY = 5


@event("torture.sold")
@dataclass(frozen=True, slots=True)
class Sold:
    product: int
    cents: int


@event("torture.withdrawn")
@dataclass(frozen=True, slots=True)
class Withdrawn:
    product: int


class Base(DeclarativeBase):
    pass


class SalesRow(Base):
    __tablename__ = "torture_sales"
    product: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, default=0)
    cents: Mapped[int] = mapped_column(BigInteger, default=0)
    last_position: Mapped[int] = mapped_column(BigInteger, default=0)


class RestRow(Base):
    __tablename__ = "torture_rest"
    rest: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, default=0)


class Sales(Projection, into=SalesRow, version=1, messages=True):
    """Many streams to one row, in their order; deletes; a message now and then."""

    @on(Sold, key=lambda e, _: e.product)
    def _(self, row: SalesRow, e: Sold, meta: RecordedEvent) -> None:
        row.number += 1
        row.cents += e.cents
        row.last_position = meta.position
        if row.number % MESSAGE_EVERY == 0:
            self.emit("sold well", {"product": e.product, "number": row.number})

    @on(Withdrawn, key=lambda e, _: e.product)
    def _(self, _row: SalesRow, _e: Withdrawn, _meta: RecordedEvent) -> object:
        return DELETE


class Rests(SetProjection, into=RestRow, version=1, reads=(Sold,), additive=True):
    """Statements of several segments that write the same few rows."""

    def statements(self, events: FromClause, tables: Mapping[type, Table]) -> Executable:
        rest = func.mod(events.c.data["cents"].as_integer(), 7)
        counted = select(rest.label("rest"), func.count().label("number")).group_by(rest)
        return upsert(tables[RestRow], counted, add=["number"])


class Board(RedisProjection, version=1):
    @on(Sold)
    def _(self, changes: RedisChanges, e: Sold, _meta: RecordedEvent) -> None:
        changes.increment("cents", e.product, e.cents)
        changes.add_score("best", e.product)

    @on(Withdrawn)
    def _(self, changes: RedisChanges, e: Withdrawn, _meta: RecordedEvent) -> None:
        changes.remove("cents", e.product)
        changes.remove_member("best", e.product)


PROJECTIONS = (Sales, Rests, Board)


def declare(url: str, redis_url: str) -> DataLayer:
    return DataLayer(url, redis_url=redis_url, projections=PROJECTIONS)


def work(url: str, redis_url: str, ready: Event) -> None:
    """Be a worker process, until told to stop."""
    logging.disable()
    with declare(url, redis_url) as layer:
        worker = layer.worker(threads=2, page_events=50, lease_seconds=LEASE_SECONDS)
        with stopped_by_signals(worker.stop):
            ready.set()  # to be told to stop
            worker.run()


def sell(url: str, seed: int, events: int) -> int:
    """Append so many events, and some that are rolled back; survive what happens to the server."""
    random, store, written = Random(seed), EventStore(), 0  # noqa: S311 -- not for secrets
    engine = create_engine(url)
    while written < events:
        size = random.choice([1, 1, 2, 7])
        happened: list[object] = [
            Withdrawn(random.randrange(PRODUCTS))
            if random.random() < 0.05
            else Sold(random.randrange(PRODUCTS), random.randrange(1_000))
            for _ in range(size)
        ]
        stream, ids = StreamId("till", str(random.randrange(9))), [uuid4() for _ in happened]
        undone = random.random() < 0.1
        while True:  # again with the same ids, which an append recognises
            try:
                with engine.connect() as conn, conn.begin() as begun:
                    store.append(conn, stream, happened, expected_version=ANY, event_ids=ids)
                    if undone:
                        begun.rollback()
            except (DBAPIError, UnavailableError):
                engine.dispose()
            else:
                break
        written += 0 if undone else size
    engine.dispose()
    return written


@dataclass(frozen=True, slots=True)
class Expected:
    """What a fold of the log, one event after the other, gives.

    Attributes:
        sales: By product its number, cents and last position.
        rests: How often each rest was sold.
        messages: Each with how often it is to be sent.
    """

    sales: dict[int, tuple[int, int, int]]
    rests: Counter[int]
    messages: Counter[tuple[int, int, int]]


def expected(layer: DataLayer) -> Expected:
    """Fold the whole log without any of the library's projections."""
    found = Expected({}, Counter(), Counter())
    with layer.engine.connect() as conn, conn.begin():
        page = layer.events.read_log(conn, limit=1_000_000)
        assert page.caught_up
        for recorded in page.events:
            (happened,) = layer.events.decode(recorded)
            if isinstance(happened, Withdrawn):
                found.sales.pop(happened.product, None)
            elif isinstance(happened, Sold):
                number, cents, _ = found.sales.get(happened.product, (0, 0, 0))
                number += 1
                sold = number, cents + happened.cents, recorded.position
                found.sales[happened.product] = sold
                found.rests[happened.cents % 7] += 1
                if number % MESSAGE_EVERY == 0:
                    found.messages[recorded.position, happened.product, number] += 1
    return found


def stored(layer: DataLayer) -> Expected:
    """Read what there is."""
    with layer.engine.connect() as conn:
        sales = {
            row.product: (row.number, row.cents, row.last_position)
            for row in conn.execute(select(SalesRow.__table__))
        }
        rests = Counter({row.rest: row.number for row in conn.execute(select(RestRow.__table__))})
        outbox = conn.exec_driver_sql("SELECT position, payload FROM datapatterns.outbox")
        messages = Counter(
            (position, payload["product"], payload["number"]) for position, payload in outbox
        )
    return Expected(sales, rests, messages)


def best_sellers(sales: Mapping[int, tuple[int, int, int]]) -> dict[str, int]:
    return {str(product): number for product, (number, _, _) in sales.items()}
