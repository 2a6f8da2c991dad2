"""What the till is made of: one event, one command, one read model."""

from dataclasses import dataclass

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns import DataLayer
from datapatterns.cqrs import CommandContext, Projection, on
from datapatterns.event_sourcing import ANY, RecordedEvent, StreamId, event

CENTS_MAX = 1_000_000


@event("till.item_scanned")
@dataclass(frozen=True, slots=True)
class ItemScanned:
    """An item went over the counter."""

    product: str
    cents: int


@dataclass(frozen=True, slots=True)
class ScanItem:
    """Somebody wants an item to go over the counter."""

    product: str
    cents: int


class Base(DeclarativeBase):
    """The tables of this application."""


class Sales(Base):
    """What was sold of one product."""

    __tablename__ = "till_sales"
    product: Mapped[str] = mapped_column(primary_key=True)
    items: Mapped[int] = mapped_column(default=0)
    cents: Mapped[int] = mapped_column(default=0)


SALES_TABLE = Base.metadata
"""Creates the table of the read model; a real application migrates it."""


class SalesByProduct(Projection, into=Sales, version=1):
    """Follows the till."""

    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: Sales, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.items += 1
        row.cents += e.cents


def declare_layer(database_url: str | None = None) -> DataLayer:
    """Return the layer of the till, on the database that is given or that the environment names."""
    layer = DataLayer(database_url, projections=[SalesByProduct])

    @layer.handles(ScanItem, validate=_problems)
    def scan_item(command: ScanItem, context: CommandContext) -> None:
        scanned = ItemScanned(command.product, command.cents)
        context.append(StreamId("till", "1"), [scanned], expected_version=ANY)

    return layer


def _problems(command: ScanItem) -> dict[str, str]:
    problems = {}
    if not command.product.strip():
        problems["product"] = "name what is sold"
    if not 0 <= command.cents <= CENTS_MAX:
        problems["cents"] = f"it costs 0 to {CENTS_MAX}"
    return problems
