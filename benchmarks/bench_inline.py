"""Append with a read model kept in the transaction, beside the append alone and one by hand."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.interleaving import Claim, Contestant
from datapatterns import DataLayer
from datapatterns.cqrs import InlineProjections, Projection, Projections, on
from datapatterns.event_sourcing import EventStore, RecordedEvent, StreamId, event
from datapatterns.sql.migrating import upgrade

KEPT = "kept"
OPERATIONS = 300
PRODUCTS = 50


@event("bench.item_sold")
@dataclass(frozen=True, slots=True)
class ItemSold:
    product: str
    cents: int


class Base(DeclarativeBase):
    pass


class Sold(Base):
    __tablename__ = "sold"
    product: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int] = mapped_column(default=0)
    cents: Mapped[int] = mapped_column(default=0)


class SoldByHand(Base):
    __tablename__ = "sold_by_hand"
    product: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]
    cents: Mapped[int]


class SoldByProduct(Projection, into=Sold, version=1):
    @on(ItemSold, key=lambda e, _: e.product)
    def _(self, row: Sold, e: ItemSold, _meta: RecordedEvent) -> None:
        row.quantity += 1
        row.cents += e.cents


BY_HAND = text(
    "INSERT INTO sold_by_hand VALUES (:product, 1, :cents) ON CONFLICT (product) DO UPDATE"
    " SET quantity = sold_by_hand.quantity + 1, cents = sold_by_hand.cents + excluded.cents"
)
"""Right only for what adds up: replacing what came last would need the order of the log."""


@contextmanager
def claim() -> Iterator[Claim]:
    """One writer, one event and one row each time; what is kept inline has a log of its own."""
    with ExitStack() as stack:
        layer = stack.enter_context(DataLayer.embedded())
        engine = layer.engine
        with engine.begin() as conn:
            upgrade(conn, schema=KEPT)  # beside others that append unkept, whom its guard refuses
            Base.metadata.create_all(conn)
        projections = InlineProjections((SoldByProduct,))
        kept = EventStore(schema=KEPT, inline=projections)
        Projections(kept).make_inline(engine, SoldByProduct)
        declared = EventStore(inline=projections)
        yield Claim(
            "append one event and keep one row in its transaction",
            "transactions",
            [
                Contestant("kept inline", "ours", _append(engine, kept)),
                Contestant("append and upsert by hand", "limit", _append(engine, by_hand=True)),
                Contestant("append alone", "limit", _append(engine)),
                Contestant("declared, not switched", "limit", _append(engine, declared)),
            ],
        )


def _append(
    engine: Engine, store: EventStore | None = None, *, by_hand: bool = False
) -> Callable[[], int]:
    events = store or EventStore()

    def run() -> int:
        stream = StreamId("basket", uuid4().hex)
        for version in range(OPERATIONS):
            sold = ItemSold(f"p{version % PRODUCTS}", version)
            with engine.begin() as conn:
                events.append(conn, stream, [sold], expected_version=version)
                if by_hand:
                    conn.execute(BY_HAND, {"product": sold.product, "cents": sold.cents})
        return OPERATIONS

    return run
