"""An event is named whatever refuses it, and is not named for what is not its fault."""

from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, Numeric, Text, Uuid, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import Projection, Projections, on
from datapatterns.errors import ProjectionDefinitionError, ProjectionStoppedError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.read_models import (
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
    sales,
)

STORE = EventStore()
PROJECTIONS = Projections(STORE)
TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.product = 'poison' THEN
    RAISE EXCEPTION 'not this one' {using};
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON product_sales FOR EACH ROW EXECUTE FUNCTION refuse()
"""


class Base(DeclarativeBase):
    pass


class ByPrice(Base):
    __tablename__ = "by_price"
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2), primary_key=True)
    number: Mapped[int] = mapped_column(default=0)


class ByText(Base):
    __tablename__ = "by_text"
    product: Mapped[str] = mapped_column(Text, primary_key=True)
    owner: Mapped[Any] = mapped_column(Uuid, nullable=True)


class Prices(Projection, into=ByPrice, version=1):
    @on(ItemScanned, key=lambda e, _: Decimal(e.cents) / 1_000)
    def _(self, row: ByPrice, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.number += 1


class Texts(Projection, into=ByText, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ByText, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.owner = "their secret" if e.product == "poison" else None


def assigning(
    assign: Callable[[ProductSales, ItemScanned], object],
) -> type[Projection]:
    class Assigning(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
            row.last_basket = "1"
            assign(row, e)

    return Assigning


def assign_a_set(row: Any, e: ItemScanned) -> None:  # noqa: ANN401 -- a handler's mistake
    row.last_basket = {1} if e.product == "poison" else "1"


def assign_a_truth(row: Any, e: ItemScanned) -> None:  # noqa: ANN401 -- a handler's mistake
    if e.product == "poison":
        row.cents = True


def assign_the_same(row: ProductSales, e: ItemScanned) -> None:
    row.last_basket = None if e.product == "fine" else "same"


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    Base.metadata.create_all(engine)
    return engine


def stopped_before(engine: Engine, projection: type[Projection]) -> tuple[int, str]:
    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.catch_up(engine, projection)
    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.catch_up(engine, projection)
    with engine.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert status.error is not None
    assert status.error["position"] == stopped.value.position == status.position + 1
    return stopped.value.position, str(status.error["message"])


def incompressible(chars: int) -> str:
    random = Random(1)  # noqa: S311 -- not a secret
    return "".join(chr(random.randrange(33, 127)) for _ in range(chars))


def test_a_key_that_is_too_long_for_the_index(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("fine", 1), ItemScanned(incompressible(20_000), 1)])

    assert stopped_before(shop, Texts)[0] == 2


def test_two_new_keys_that_only_the_database_finds_equal(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("a", 1_001), ItemScanned("b", 1_002)])

    assert stopped_before(shop, Prices)[0] == 2


@pytest.mark.parametrize("assign", [assign_a_set, assign_a_truth])
def test_a_value_that_no_column_takes(
    shop: Engine, assign: Callable[[ProductSales, ItemScanned], object]
) -> None:
    append_all(shop, STORE, [ItemScanned("fine", 1), ItemScanned("poison", 1)])

    assert stopped_before(shop, assigning(assign))[0] == 2


def test_a_row_that_a_trigger_refuses(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(text(TRIGGER.format(using="")))
    append_all(shop, STORE, [ItemScanned("fine", 1), ItemScanned("poison", 1)])

    assert stopped_before(shop, SalesByProduct) == (2, "not this one")


@pytest.mark.parametrize("sqlstate", ["53200", "55P03", "42501"])
def test_what_is_not_the_events_fault_is_not_blamed_on_it(shop: Engine, sqlstate: str) -> None:
    with shop.begin() as conn:
        conn.execute(text(TRIGGER.format(using=f"USING ERRCODE = '{sqlstate}'")))
    append_all(shop, STORE, [ItemScanned("fine", 1), ItemScanned("poison", 1)])

    with pytest.raises((OperationalError, ProgrammingError), match="not this one"):
        PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop) == {}


def test_a_constraint_that_is_checked_at_the_commit(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(
            text("ALTER TABLE product_sales ADD UNIQUE (last_basket) DEFERRABLE INITIALLY DEFERRED")
        )
    append_all(shop, STORE, [ItemScanned(product, 1) for product in ("a", "fine", "b", "c")])

    assert stopped_before(shop, assigning(assign_the_same))[0] == 3
    assert sales(shop).keys() == {"a", "fine"}


def test_a_refused_value_is_not_quoted_with_its_whole_page(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("somebody else", 1), ItemScanned("poison", 1)])

    position, message = stopped_before(shop, Texts)

    assert position == 2
    assert "somebody else" not in message
    assert "parameters" not in message


@pytest.mark.parametrize("deferred", [False, True])
def test_a_rebuild_whose_rows_the_table_refuses_says_why(shop: Engine, *, deferred: bool) -> None:
    projection = assigning(assign_the_same)
    append_all(shop, STORE, [ItemScanned("a", 1)])
    PROJECTIONS.catch_up(shop, projection)
    with shop.begin() as conn:
        when = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
        conn.execute(text(f"ALTER TABLE product_sales ADD UNIQUE (last_basket) {when}"))
    append_all(shop, STORE, [ItemScanned("b", 1)])

    with pytest.raises(ProjectionDefinitionError, match="refuses what the log gives: duplicate"):
        PROJECTIONS.rebuild(shop, projection)

    assert sales(shop).keys() == {"a"}
