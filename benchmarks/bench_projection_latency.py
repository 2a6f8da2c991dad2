"""From the COMMIT of an event to that of the read model: at 100 writes a second, p50 and p99."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Final

from sqlalchemy import URL, create_engine

from benchmarks.delays import DelayClaim, Moments, PacedSender, Traveller, paced_sender
from benchmarks.rival import settings_of
from benchmarks.rival_projection import RivalFollower, RivalShop, sale_at, shop_env
from benchmarks.sales import Base, SalesByProduct, sale
from datapatterns import DataLayer
from datapatterns.cqrs import ProjectionProgress, Projections
from datapatterns.event_sourcing import ANY, EventStore, Position, StreamId

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
                Traveller("Projections.catch_up", "ours", _ours(layer, ours)),
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


def _ours(layer: DataLayer, sender: PacedSender) -> Callable[[], list[float]]:
    projections = Projections(layer.events)
    seen: list[tuple[Position, float]] = []

    def note(done: ProjectionProgress) -> None:
        seen.append((done.position, time.perf_counter()))

    def run() -> list[float]:
        seen.clear()
        with layer.engine.connect() as conn:
            last = layer.events.high_water_mark(conn) + WRITES
        sender.start(WRITES, per_second=WRITES_PER_SECOND)
        projections.catch_up(layer.engine, SalesByProduct, until=Position(last), on_page=note)
        return _under_way(sender.sent(), seen)

    return run


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
