"""What the benchmarks of the event store share: events, and the bare table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import msgspec
from psycopg import Connection as DriverConnection
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from datapatterns.event_sourcing import Aggregate, applies, event, every

Driver: TypeAlias = DriverConnection[Any]


@event("benchmark.item_scanned")
class ItemScanned(msgspec.Struct, frozen=True):
    """A product went into the basket."""

    product_id: int
    quantity: int
    cents: int
    memo: str


@event("benchmark.item_removed")
class ItemRemoved(msgspec.Struct, frozen=True):
    """A product was taken out of it."""

    product_id: int
    quantity: int
    cents: int


class Basket(Aggregate, category="basket", snapshot=every(1)):
    """What is in a basket, as far as a till wants to know."""

    items: int = 0
    cents: int = 0

    @applies
    def _scanned(self, scanned: ItemScanned) -> None:
        self.items += scanned.quantity
        self.cents += scanned.cents

    @applies
    def _removed(self, removed: ItemRemoved) -> None:
        self.items -= removed.quantity
        self.cents -= removed.cents


MEMO: Final = "m" * 100
DATA: Final = {"product_id": 819312, "quantity": 1, "cents": 149, "memo": MEMO}
PAYLOAD: Final = msgspec.json.encode(DATA)
DECODERS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    "benchmark.item_scanned": msgspec.json.Decoder(ItemScanned),
    "benchmark.item_removed": msgspec.json.Decoder(ItemRemoved),
}

BARE: Final = """
CREATE TABLE bare (
    LIKE datapatterns.event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES);
CREATE SEQUENCE bare_position;
ALTER TABLE bare ALTER position SET DEFAULT nextval('bare_position');
"""
"""The event table without what makes it an event store."""


def basket_event(number: int) -> ItemScanned | ItemRemoved:
    """Return the event of that number; every tenth takes out what the one before put in."""
    if number % 10 == 9:
        return ItemRemoved(number, 1, 148 + number)
    return ItemScanned(number + 1, 1, 149 + number, MEMO)


def create_bare(engine: Engine) -> None:
    """Make the table that the limits write to."""
    with engine.begin() as conn:
        conn.execute(text(BARE))


@contextmanager
def driver(url: URL, *, autocommit: bool) -> Iterator[Driver]:
    """Connect the driver alone."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with DriverConnection.connect(plain, autocommit=autocommit) as conn:
        yield conn


@contextmanager
def engine_of(url: URL) -> Iterator[Engine]:
    """Make an engine in a writer's process."""
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()
