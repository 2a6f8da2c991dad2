"""Two versions that park, with messages, under workers: promoted, split, retried, cut off.

Whatever happens, each is the fold of the log without the rows that wait, and every effect has its
message once; when what refused events is mended and retried, each is the fold of all.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from threading import Event, Thread
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, QueuePool, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import Projection, Projections, Retried, on
from datapatterns.errors import DataPatternsError, LeaseLostError
from datapatterns.event_sourcing import ANY, EventStore, RecordedEvent, StreamId, event
from datapatterns.runtime import Worker
from datapatterns.testing import Databases, wait_until
from tests.fixtures.effort import THOROUGH

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

STORE = EventStore()
DEEDS = 300 if THOROUGH else 30
PRODUCTS, SOUND = 60, 20
BAD = 0.02 if THOROUGH else 0.1
ENOUGH_SECONDS = 240.0
mended = Event()

KILL = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
)
COUNTED = text(
    "SELECT version, sum(parked), (SELECT count(*) FROM datapatterns.projection_parked p"
    " WHERE p.version = s.version) FROM datapatterns.projection_shard s GROUP BY version"
)


@event("parking.sold")
@dataclass(frozen=True, slots=True)
class Sold:
    products: list[int]
    bad: list[int]
    """Which products the first table refuses, and, negative, the second one."""


class Base(DeclarativeBase):
    pass


class First(Base):
    __tablename__ = "parking_first"
    product: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(default=0)


class Second(Base):
    __tablename__ = "parking_second"
    product: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(default=0)


class Pair(Projection, into=(First, Second), version=1, on_poison="park", messages=True):
    @on(Sold, keys=lambda e, _: e.products, into=First)
    def _(self, row: First, e: Sold, _meta: RecordedEvent) -> None:
        self._count(First, row, refused=row.product in e.bad)

    @on(Sold, keys=lambda e, _: e.products, into=Second)
    def _(self, row: Second, e: Sold, _meta: RecordedEvent) -> None:
        self._count(Second, row, refused=-row.product in e.bad)

    def _count(self, model: type[Base], row: First | Second, *, refused: bool) -> None:
        if refused and not mended.is_set():
            raise LookupError(row.product)
        row.number += 1
        self.emit(model.__tablename__, [row.product, row.number])


class NextPair(
    Pair, into=(First, Second), version=2, name=Pair.name, on_poison="park", messages=True
):
    pass


class Views(NamedTuple):
    """Numbers by table and product, messages by topic, product, number and position."""

    numbers: Counter[tuple[str, int]]
    messages: Counter[tuple[str, int, int, int]]
    waiting: set[tuple[str, int]]


def folded(events: Engine) -> Views:
    """Fold the whole log, one event after the other."""
    found = Views(Counter(), Counter(), set())
    with events.begin() as conn:
        page = STORE.read_log(conn, limit=1_000_000)
    for recorded in page.events:
        (sold,) = STORE.decode(recorded)
        assert isinstance(sold, Sold)
        for product in dict.fromkeys(sold.products):
            for sign, table in ((1, First.__tablename__), (-1, Second.__tablename__)):
                row = table, product
                if not mended.is_set() and (sign * product in sold.bad or row in found.waiting):
                    found.waiting.add(row)
                    continue
                found.numbers[row] += 1
                found.messages[*row, found.numbers[row], recorded.position] += 1
    return found


def stored(engine: Engine) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int, int, int]]]:
    numbers: Counter[tuple[str, int]] = Counter()
    with engine.begin() as conn:
        for model in (First, Second):
            for row in conn.execute(select(model.product, model.number)):
                numbers[model.__tablename__, row.product] = row.number
        told = conn.execute(text("SELECT topic, payload, position FROM datapatterns.outbox"))
        messages = Counter((topic, *payload, position) for topic, payload, position in told)
    return numbers, messages


@dataclass(slots=True)
class Shop:
    """Who writes and works, and what happens to them."""

    engine: Engine
    events: Engine
    random: Random
    done: Counter[str] = field(default_factory=Counter)
    workers: list[tuple[Worker, Thread]] = field(default_factory=list)

    @property
    def projections(self) -> Projections:
        elsewhere = None if self.events is self.engine else self.events
        declared = [Pair, NextPair]
        return Projections(STORE, lease_seconds=1.0, declared=declared, events_from=elsewhere)

    def hire(self) -> None:
        page_events = self.random.choice([5, 20, 100])
        worker = Worker(
            create_engine(self.engine.url),
            self.projections.worker(page_events=page_events),
            grace_seconds=self.random.choice([0.0, 1.0]),
        )
        thread = Thread(target=worker.run, daemon=True)
        thread.start()
        self.workers.append((worker, thread))

    def dismiss(self) -> None:
        worker, thread = self.workers.pop(0)
        worker.stop()
        thread.join(ENOUGH_SECONDS)
        assert not thread.is_alive()
        close(worker.engine)

    def replace_a_worker(self) -> None:
        self.dismiss()
        self.hire()

    def promote(self) -> None:
        self.projections.promote(self.engine, self._one(), timeout_seconds=5)

    def split_or_merge(self) -> None:
        count = self.random.choice([1, 2, 4, 8])
        self.projections.split_into(self.engine, self._one(), count, timeout_seconds=5)

    def retry(self) -> None:
        page_events = self.random.choice([1, 100])
        self.projections.retry(self.engine, self._one(), page_events=page_events)

    def build(self) -> None:
        # In place it would send no messages; see its documentation.
        if self.live() is Pair:
            self.projections.rebuild(self.engine, NextPair, promote=False, timeout_seconds=10)

    def end_connections(self) -> None:
        with self.engine.begin() as conn:
            conn.execute(KILL)
        # Of what was killed, only this engine's is not looked at before it is used: no thread but
        # this one uses it. What others hold must not come back to a pool that nobody has any more.
        close(self.engine)

    def do_something(self) -> None:
        deeds: list[Callable[[], None]] = [
            *(self.promote, self.split_or_merge, self.split_or_merge, self.retry),
            *(self.build, self.replace_a_worker, self.end_connections),
        ]
        deed = self.random.choice(deeds)
        # What is cut off, or meets another, says so; then nothing, or all, or a part was done.
        with suppress(DataPatternsError, DBAPIError):
            deed()
            self.done[deed.__name__] += 1

    def live(self) -> type[Projection]:
        with self.engine.begin() as conn:
            version = conn.scalar(
                text("SELECT version FROM datapatterns.projection WHERE status = 'live'")
            )
        return Pair if version == Pair.version else NextPair

    def _one(self) -> type[Projection]:
        return self.random.choice([Pair, NextPair])


def close(engine: Engine) -> None:
    """Dispose of an engine whose users have all given back what they held.

    A page that is cancelled may outlive its worker by as long as the server takes to undo it.
    """
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    wait_until(lambda: pool.checkedout() == 0, deadline_seconds=ENOUGH_SECONDS)
    engine.dispose()


def write(url: Engine, seed: int, stop: Event) -> None:
    random, engine = Random(seed), create_engine(url.url)  # noqa: S311 -- not for secrets
    while not stop.wait(0.02):
        products = [random.randrange(1, PRODUCTS) for _ in range(random.choice([0, 1, 1, 2, 4]))]
        poison = [p for p in products if p > SOUND and random.random() < BAD]
        sold = Sold(products, [random.choice([1, -1]) * product for product in poison])
        with suppress(DBAPIError, DataPatternsError), engine.connect() as conn:
            begun = conn.begin()
            STORE.append(conn, StreamId("till", str(seed)), [sold], expected_version=ANY)
            begun.rollback() if random.random() < 0.1 else begun.commit()
    engine.dispose()


@contextmanager
def writing(events: Engine) -> Iterator[None]:
    stop = Event()
    writers = [Thread(target=write, args=(events, seed, stop), daemon=True) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def caught_up(shop: Shop) -> bool:
    with shop.events.begin() as conn:
        mark = STORE.high_water_mark(conn)
    with shop.engine.connect() as conn:
        return all(one.position >= mark for one in shop.projections.status(conn))


def retried(shop: Shop, projection: type[Projection]) -> Retried:
    """Retry as callers do: who stands still for as long as a lease loses it to a worker."""
    for _ in range(20):
        with suppress(LeaseLostError):
            return shop.projections.retry(shop.engine, projection)
    pytest.fail("a lease was lost each time")


def check(shop: Shop) -> None:
    should = folded(shop.events)
    with shop.engine.begin() as conn:
        assert all(counted == waiting for _, counted, waiting in conn.execute(COUNTED))
        rows = Counter(one.version for one in shop.projections.parked(conn))
    numbers, messages = stored(shop.engine)
    assert numbers == should.numbers
    assert messages == should.messages
    assert set(rows.values()) <= {len(should.waiting)}
    for projection in (Pair, NextPair):
        assert shop.projections.verify(shop.engine, projection).matches


@pytest.mark.parametrize("elsewhere", [False, True], ids=["one-server", "events-elsewhere"])
def test_versions_that_park_are_the_fold_of_the_log_and_send_each_message_once(
    engine: Engine, databases: Databases, *, elsewhere: bool
) -> None:
    mended.clear()
    Base.metadata.create_all(engine)
    with databases.lend() as url:
        events = create_engine(url) if elsewhere else engine
        shop = Shop(engine, events, Random(20_261_130))  # noqa: S311 -- not for secrets
        with events.begin() as conn:
            STORE.append(conn, StreamId("till", "0"), [Sold([1], [])], expected_version=ANY)
        shop.projections.catch_up(engine, Pair)
        shop.projections.rebuild(engine, NextPair, promote=False)
        shop.hire()
        shop.hire()
        with writing(events):
            for _ in range(DEEDS):
                shop.do_something()
        wait_until(partial(caught_up, shop), deadline_seconds=ENOUGH_SECONDS)
        check(shop)
        assert folded(events).waiting

        mended.set()
        live = shop.live()
        for projection in (live, Pair, NextPair):
            assert not retried(shop, projection).refused
        check(shop)
        while shop.workers:
            shop.dismiss()
        assert len(shop.done) > 4, f"it was done: {shop.done}"
        close(events)
