"""The grocer's tables: baskets on the shards, receipts and the catalogue on the main database."""

from datetime import datetime

from sqlalchemy import BigInteger, Integer, Text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.index_table import IndexTable, ShardIndexes
from datapatterns.sharding import EntityGroup, Hash

# So few that the demo can move a quarter of them twice. Take a hundred for each shard.
HOUSEHOLDS = EntityGroup("household", strategy=Hash(buckets=32), key=BigInteger)


class Sharded(DeclarativeBase):
    """What lies on every shard."""


class Household(Sharded):
    """Who shops."""

    __tablename__ = "household"
    __shard__ = HOUSEHOLDS.by("household_id")

    household_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    loyalty_number: Mapped[str] = mapped_column(Text)
    baskets: Mapped[int] = mapped_column(Integer)


class BasketRow(Sharded):
    """A paid basket; it lies with its household."""

    __tablename__ = "basket"
    __shard__ = HOUSEHOLDS.by("household_id")

    household_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    basket_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    store_id: Mapped[int] = mapped_column(BigInteger)
    week: Mapped[int] = mapped_column(Integer)
    lines: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(BigInteger)
    paid_at: Mapped[datetime] = mapped_column(TIMESTAMP())


class BasketProduct(Sharded):
    """That a basket held a product; it lies with its household, too."""

    __tablename__ = "basket_product"
    __shard__ = HOUSEHOLDS.by("household_id")

    household_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    basket_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


BY_LOYALTY_NUMBER = IndexTable(
    "household_by_loyalty_number",
    on=[Household.loyalty_number],
    unique=True,
    mode="reserve",
    buckets=8,
)
BY_PRODUCT = IndexTable(
    "basket_by_product", on=[BasketProduct.product_id], mode="reserve", buckets=8
)
OVER_SHARDS = ShardIndexes([BY_LOYALTY_NUMBER, BY_PRODUCT])


def loyalty_number(household_id: int) -> str:
    """Return what is printed on a household's card; the data set has none, so it is made here.

    >>> loyalty_number(1)
    '26-000001-3'
    """
    digits = f"26{household_id:06d}"
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits), start=1)]
    return f"26-{digits[2:]}-{-sum(number // 10 + number % 10 for number in doubled) % 10}"


class Central(DeclarativeBase):
    """What lies on the main database."""


class Product(Central):
    """The catalogue. ``on_offer`` is the shop's own, and not in the data set."""

    __tablename__ = "product"

    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    department: Mapped[str | None] = mapped_column(Text)
    brand: Mapped[str | None] = mapped_column(Text)
    category: Mapped[str | None] = mapped_column(Text)
    type: Mapped[str | None] = mapped_column(Text)
    package_size: Mapped[str | None] = mapped_column(Text)
    on_offer: Mapped[bool] = mapped_column(server_default="false")


class LineRow(Central):
    """One line of a receipt."""

    __tablename__ = "line"

    basket_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    household_id: Mapped[int] = mapped_column(BigInteger)
    store_id: Mapped[int] = mapped_column(BigInteger)
    week: Mapped[int] = mapped_column(Integer)
    quantity: Mapped[int] = mapped_column(Integer)
    cents: Mapped[int] = mapped_column(BigInteger)


class ProductSales(Central):
    """The read model that a projection keeps from the events."""

    __tablename__ = "product_sales"

    product_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    quantity: Mapped[int] = mapped_column(BigInteger, default=0)
    cents: Mapped[int] = mapped_column(BigInteger, default=0)
    scans: Mapped[int] = mapped_column(BigInteger, default=0)


class BasketSize(Central):
    """How many baskets held so many items; kept by statements, a range of the log at a time."""

    __tablename__ = "basket_size"

    items: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    baskets: Mapped[int] = mapped_column(BigInteger, default=0)
    cents: Mapped[int] = mapped_column(BigInteger, default=0)


class StoreBaskets(Central):
    """How many baskets each store has seen; kept in the transaction that starts one."""

    __tablename__ = "store_baskets"

    store_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    baskets: Mapped[int] = mapped_column(BigInteger, default=0)
