"""How long readers wait for a promotion, with readers, a writer and runners at work."""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from sqlalchemy import Engine, text

from benchmarks.interleaving import Claim, Contestant
from benchmarks.sales import Base, ProductSales, SalesByProduct, fill_log
from datapatterns import DataLayer
from datapatterns.cqrs import Projections
from datapatterns.failpoints import armed

EVENTS: Final = 20_000
READERS: Final = 4


class NextSales(SalesByProduct, into=ProductSales, version=2, name="sales_by_product"):
    """The same once more, beside the first."""


@contextmanager
def claim() -> Iterator[Claim]:
    """Each round promotes one version and puts the other back."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        Base.metadata.create_all(layer.engine)
        fill_log(layer, EVENTS)
        projections = Projections(layer.events)
        projections.rebuild(layer.engine, SalesByProduct)
        projections.rebuild(layer.engine, NextSales, promote=False)
        readers = stack.enter_context(_readers(layer.engine))
        held: list[float] = []

        def swap() -> int:
            for projection in (NextSales, SalesByProduct):
                with armed("promote.locked", lambda: held.append(time.perf_counter())):
                    projections.promote(layer.engine, projection)
                held[-1] = time.perf_counter() - held[-1]
            return 2

        yield Claim(
            f"promote a read model with {READERS} readers",
            "promotions",
            [Contestant("Projections.promote", "ours", swap, lambda: None)],
        )
        print(  # noqa: T201 -- the figure
            f"locks held {statistics.median(held) * 1e3:.1f} ms, at most {max(held) * 1e3:.1f} ms;"
            f" the slowest of {len(readers.seconds):,} reads took {max(readers.seconds) * 1e3:.1f}"
            f" ms; errors and empty tables: {len(readers.wrong)}"
        )
        assert not readers.wrong


class _Readers:
    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wrong: list[object] = []
        self.stop = threading.Event()

    def read(self, engine: Engine) -> None:
        counted = text("SELECT count(*) FROM product_sales")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            while not self.stop.is_set():
                began = time.perf_counter()
                try:
                    if not conn.scalar(counted):
                        self.wrong.append("empty")
                except Exception as error:  # noqa: BLE001 -- counted
                    self.wrong.append(error)
                self.seconds.append(time.perf_counter() - began)


@contextmanager
def _readers(engine: Engine) -> Iterator[_Readers]:
    readers = _Readers()
    threads = [threading.Thread(target=readers.read, args=[engine]) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield readers
    finally:
        readers.stop.set()
        for thread in threads:
            thread.join()
