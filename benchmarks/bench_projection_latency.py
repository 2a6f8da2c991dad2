"""From the COMMIT of an event to that of the read model: at 100 writes a second, p50 and p99."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Thread
from typing import Final

from sqlalchemy import URL, Connection, create_engine

from benchmarks.delays import DelayClaim, Moments, PacedSender, Traveller, paced_sender
from benchmarks.rival import settings_of
from benchmarks.rival_projection import (
    PATIENCE_SECONDS,
    RivalFollower,
    RivalShop,
    sale_at,
    shop_env,
)
from benchmarks.sales import Base, SalesByProduct, sale
from datapatterns import DataLayer
from datapatterns.cqrs import ProjectionProgress, Projections
from datapatterns.cqrs.running.leasing import Lease
from datapatterns.cqrs.running.runners import Runner
from datapatterns.event_sourcing import ANY, EventStore, Position, StreamId
from datapatterns.runtime import Worker

WRITES: Final = 500
WRITES_PER_SECOND: Final = 100


@contextmanager
def claim() -> Iterator[DelayClaim]:
    """One process writes, each event a transaction; another runs the read model.

    A page is visible when its COMMIT is answered, so nobody has to poll for it.
    """
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        url = layer.engine.url
        Base.metadata.create_all(layer.engine)
        ours = stack.enter_context(paced_sender(our_sales, url))
        theirs = stack.enter_context(paced_sender(rival_sales, url))
        rival = RivalFollower(settings_of(url))
        yield DelayClaim(
            f"from the COMMIT of an event to the row, {WRITES_PER_SECOND} a second",
            [
                Traveller("a worker", "ours", _ours(layer, ours)),
                Traveller("eventsourcing's runner", "rival", _rivals(rival, theirs)),
            ],
        )


def our_sales(url: URL) -> Callable[[], int]:
    """Append one sale at a time."""
    engine, store, numbers = create_engine(url), EventStore(), count()

    def send() -> int:
        number = next(numbers)
        with engine.begin() as conn:
            stream = StreamId("basket", str(number // 100))
            return store.append(conn, stream, [sale(number)], expected_version=ANY).position

    return send


def rival_sales(url: URL) -> Callable[[], int]:
    """Save one sale at a time."""
    shop, numbers = RivalShop(shop_env(settings_of(url))), count()

    def send() -> int:
        (recording,) = shop.save(sale_at(next(numbers)))
        position: int = recording.notification.id
        return position

    return send


@dataclass(frozen=True, slots=True)
class Noting:
    """Moves a projection on, and notes when it has got where."""

    runner: Runner
    seen: list[tuple[Position, float]]

    def begin(self, conn: Connection, lease: Lease) -> Lease:
        """Do as the runner does."""
        return self.runner.begin(conn, lease)

    def page(
        self, conn: Connection, lease: Lease, *, persist: bool = True
    ) -> tuple[Lease, ProjectionProgress]:
        """Do as the runner does, and look at the clock."""
        lease, done = self.runner.page(conn, lease, persist=persist)
        self.seen.append((lease.read_to, time.perf_counter()))
        return lease, done


def _ours(layer: DataLayer, sender: PacedSender) -> Callable[[], list[float]]:
    projections = Projections(layer.events, declared=[SalesByProduct])

    def run() -> list[float]:
        seen: list[tuple[Position, float]] = []
        core = projections.worker()
        runner_of = core.runner_of
        core.runner_of = lambda projection: Noting(runner_of(projection), seen)
        worker = Worker(layer.engine, core)
        thread = Thread(target=worker.run)
        thread.start()
        _wait_until(lambda: bool(seen))
        sender.start(WRITES, per_second=WRITES_PER_SECOND)
        sent = sender.sent()
        _wait_until(lambda: seen[-1][0] >= max(sent))
        worker.stop()
        thread.join()
        return _under_way(sent, seen)

    return run


def _wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _under_way(sent: Moments, seen: list[tuple[Position, float]]) -> list[float]:
    pages = iter(seen)
    position, moment = next(pages)
    seconds = []
    for wanted, committed in sent.items():
        while position < wanted:
            position, moment = next(pages)
        # The answer to the COMMIT may come to the writer after the event has been folded.
        seconds.append(max(0.0, moment - committed))
    return seconds


def _rivals(rival: RivalFollower, sender: PacedSender) -> Callable[[], list[float]]:
    def run() -> list[float]:
        with rival.following() as seen:
            sender.start(WRITES, per_second=WRITES_PER_SECOND)
            sent = sender.sent()
            rival.wait_for(max(sent))
            return [max(0.0, seen[position] - committed) for position, committed in sent.items()]

    return run
