"""One projection, several tables, and segments of it at different positions."""

import pytest
from sqlalchemy import Engine, ForeignKey, MetaData, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from datapatterns.cqrs import DELETE, Projection, Projections, on
from datapatterns.errors import ProjectionDefinitionError, ProjectionStoppedError
from datapatterns.event_sourcing import EventStore, RecordedEvent
from tests.fixtures.read_models import (
    ItemScanned,
    ProductsMerged,
    ProductWithdrawn,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)


class Base(DeclarativeBase):
    metadata = MetaData()


class Product(Base):
    __tablename__ = "several_product"
    name: Mapped[str] = mapped_column(primary_key=True)
    scanned: Mapped[int] = mapped_column(default=0)


class Price(Base):
    """Refers to its product, so it is written after it and deleted before it."""

    __tablename__ = "several_price"
    product: Mapped[str] = mapped_column(ForeignKey(Product.name), primary_key=True)
    cents: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    times: Mapped[int] = mapped_column(default=0)


class PricesOfProducts(Projection, into=(Product, Price), version=1):
    @on(ItemScanned, into=Product, key=lambda e, _: e.product)
    def _(self, row: Product, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.scanned += 1

    @on(ItemScanned, into=Price, key=lambda e, _: (e.product, e.cents))
    def _(self, row: Price, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.times += 1

    @on(ProductsMerged, into=Price, keys=lambda e, _: [(p, 100) for p in e.products])
    def _(self, _row: Price, _e: ProductsMerged, _meta: RecordedEvent) -> object:
        return DELETE

    @on(ProductWithdrawn, into=Product, key=lambda e, _: e.product)
    def _(self, _row: Product, _e: ProductWithdrawn, _meta: RecordedEvent) -> object:
        return DELETE


@pytest.fixture
def shop(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    create_tables(engine)
    return engine


def contents(engine: Engine) -> tuple[dict[str, int], dict[tuple[str, int], int]]:
    with Session(engine) as session:
        products = {p.name: p.scanned for p in session.scalars(select(Product))}
        prices = {(p.product, p.cents): p.times for p in session.scalars(select(Price))}
    return products, prices


def test_one_event_goes_into_the_rows_of_both_tables_in_one_transaction(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100), ItemScanned("milk", 90)])

    PROJECTIONS.catch_up(shop, PricesOfProducts)

    assert contents(shop) == ({"milk": 2}, {("milk", 100): 1, ("milk", 90): 1})


def test_rows_that_refer_to_others_are_deleted_before_them(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100)])
    PROJECTIONS.catch_up(shop, PricesOfProducts)
    append_all(shop, STORE, [ProductsMerged(["milk"]), ProductWithdrawn("milk")])

    PROJECTIONS.catch_up(shop, PricesOfProducts)

    assert contents(shop) == ({}, {})


def test_a_table_that_refuses_its_row_leaves_the_other_one_as_it_was(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100)])
    append_all(shop, STORE, [ProductWithdrawn("milk")])

    with pytest.raises(ProjectionStoppedError, match="foreign key"):
        PROJECTIONS.catch_up(shop, PricesOfProducts)

    assert contents(shop) == ({"milk": 1}, {("milk", 100): 1})


def test_verify_and_rebuild_see_each_table(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100), ItemScanned("bread", 250)])
    PROJECTIONS.catch_up(shop, PricesOfProducts)
    with shop.begin() as conn:
        conn.execute(text("UPDATE several_price SET times = 7 WHERE product = 'milk'"))
        conn.execute(text("UPDATE several_product SET scanned = 9 WHERE name = 'bread'"))

    found = PROJECTIONS.verify(shop, PricesOfProducts)
    PROJECTIONS.rebuild(shop, PricesOfProducts)

    assert [(d.table, d.key) for d in found.differences] == [
        ("several_product", ("bread",)),
        ("several_price", ("milk", 100)),
    ]
    assert found.rows == 4
    assert PROJECTIONS.verify(shop, PricesOfProducts).matches
    assert contents(shop)[0] == {"milk": 1, "bread": 1}


def test_at_most_as_many_differences_are_told_as_were_asked_for(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100)])
    PROJECTIONS.catch_up(shop, PricesOfProducts)
    with shop.begin() as conn:
        conn.execute(text("UPDATE several_price SET times = 7"))
        conn.execute(text("UPDATE several_product SET scanned = 9"))

    assert len(PROJECTIONS.verify(shop, PricesOfProducts, limit=1).differences) == 1


def test_a_table_belongs_to_one_projection_whatever_else_it_writes(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, PricesOfProducts)

    class Thief(Projection, into=Price, version=1):
        @on(ItemScanned, key=lambda e, _: (e.product, e.cents))
        def _(self, row: Price, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.times += 1

    with pytest.raises(ProjectionDefinitionError, match="several_price is the read model of"):
        PROJECTIONS.catch_up(shop, Thief)


def halve(engine: Engine, name: str) -> None:
    """Split the one segment of a projection, as SQL."""
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET mask = 1 WHERE name = :n"), {"n": name}
        )
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection_shard (name, version, shard, mask, position)"
                " SELECT name, version, 1, 1, position FROM datapatterns.projection_shard"
                " WHERE name = :n"
            ),
            {"n": name},
        )


@pytest.mark.parametrize("behind", [0, 1])
def test_segments_at_different_positions_are_verified_each_as_far_as_it_is(
    shop: Engine, behind: int
) -> None:
    events = [ItemScanned(f"p{n % 7}", n) for n in range(40)]
    append_all(shop, STORE, events)
    PROJECTIONS.run(shop, SalesByProduct, page_events=1)
    halve(shop, SalesByProduct.name)
    with shop.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.projection_shard SET owner = 'away',"
                " lease_until = now() + interval '1 hour' WHERE shard = :shard"
            ),
            {"shard": behind},
        )

    PROJECTIONS.run(shop, SalesByProduct, page_events=25)

    with shop.begin() as conn:
        assert PROJECTIONS.position(conn, SalesByProduct) == 1
    assert PROJECTIONS.verify(shop, SalesByProduct, page_events=10).matches
    assert sales(shop) != expected_sales((e, "1") for e in events)
    with shop.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection_shard SET owner = NULL, lease_until = NULL")
        )
    PROJECTIONS.catch_up(shop, SalesByProduct, page_events=9)
    assert sales(shop) == expected_sales((e, "1") for e in events)
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


def test_verify_sees_a_row_that_a_segment_has_wrong(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned(f"p{n % 7}", n) for n in range(40)])
    PROJECTIONS.run(shop, SalesByProduct, page_events=1)
    halve(shop, SalesByProduct.name)
    PROJECTIONS.catch_up(shop, SalesByProduct)
    with shop.begin() as conn:
        conn.execute(text("UPDATE product_sales SET quantity = 1 WHERE product IN ('p3', 'p4')"))

    found = PROJECTIONS.verify(shop, SalesByProduct)

    assert [difference.key for difference in found.differences] == [("p3",), ("p4",)]


def test_a_page_ends_at_a_barrier_until_that_expires(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 6)
    PROJECTIONS.run(shop, SalesByProduct, page_events=1)
    barrier = text(
        "UPDATE datapatterns.projection_shard SET barrier = 3,"
        " barrier_until = clock_timestamp() + make_interval(secs => :seconds)"
    )
    with shop.begin() as conn:
        conn.execute(barrier, {"seconds": 60})

    held = [PROJECTIONS.run(shop, SalesByProduct).position for _ in range(3)]
    with shop.begin() as conn:
        conn.execute(barrier, {"seconds": -1})
    freed = PROJECTIONS.run(shop, SalesByProduct).position

    assert (held, freed) == ([3, 3, 3], 6)
    assert sales(shop)["milk"][0] == 6


def test_a_barrier_that_comes_in_the_middle_of_a_page_undoes_it(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 6)
    PROJECTIONS.run(shop, SalesByProduct, page_events=1)

    class Barred(SalesByProduct, into=SalesByProduct.tables, version=1, name=SalesByProduct.name):
        @on(ItemScanned, key=lambda e, _: e.product)
        def bar(self, _row: object, _e: ItemScanned, meta: RecordedEvent) -> None:
            if meta.position == 4:
                with shop.begin() as conn:
                    conn.execute(
                        text(
                            "UPDATE datapatterns.projection_shard SET barrier = 3,"
                            " barrier_until = clock_timestamp() + interval '1 minute'"
                        )
                    )

    first = PROJECTIONS.run(shop, Barred)
    second = PROJECTIONS.run(shop, Barred)

    assert (first.events, first.position) == (0, 1)
    assert (second.events, second.position) == (2, 3)
    assert sales(shop)["milk"][0] == 3
