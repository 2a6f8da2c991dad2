"""Folding into tables: keys, deletes, poison, versions, what is refused; and in any schema."""

from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Engine,
    Integer,
    String,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from datapatterns.cqrs import Projection, Projections, on
from datapatterns.cqrs.tables.read_model import read_models_of
from datapatterns.errors import (
    ProjectionDefinitionError,
    ProjectionStoppedError,
    ProjectionVersionError,
)
from datapatterns.event_sourcing import EventStore, NewEvent, RecordedEvent
from datapatterns.sql.migrating import upgrade
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductSales,
    ProductsMerged,
    ProductWithdrawn,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

STORE = EventStore()
PROJECTIONS = Projections(STORE)


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"
    aisle: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(10), primary_key=True)
    seen: Mapped[list[str]] = mapped_column("seen_products", JSONB, default=list)
    note: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))


class Shelves(Projection, into=Shelf, version=1):
    @on(ItemScanned, key=lambda e, meta: (e.cents, meta.stream.key) if e.cents else None)
    def _(self, row: Shelf, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.seen.append(e.product)
        row.note = {"ø": [None, e.cents]} if e.cents > 1 else None


class Folded(Base):
    __tablename__ = "folded_key"
    name: Mapped[str] = mapped_column(CITEXT, primary_key=True)
    count: Mapped[int] = mapped_column(default=0)


class OnlyKey(Base):
    __tablename__ = "only_key"
    name: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    with engine.begin() as conn:
        conn.execute(text("CREATE EXTENSION IF NOT EXISTS citext"))
    Base.metadata.create_all(engine)
    return engine


def test_one_event_changes_many_rows_and_many_streams_one(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("ä", 1), ItemScanned("b", 2)], basket="1")
    append_all(shop, STORE, [ItemScanned("ä", 10)], basket="2")
    append_all(shop, STORE, [ProductsMerged(["ä", "b", "new", "b"])], basket="3")

    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop) == {"ä": (6, 11, "2"), "b": (5, 2, "1"), "new": (4, 0, None)}


def test_a_deleted_row_begins_anew(shop: Engine) -> None:
    gone, again = ProductWithdrawn("milk"), ItemScanned("milk", 5)
    append_all(shop, STORE, [ItemScanned("milk", 1), gone, again, ItemScanned("tea", 2)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    within_a_page = sales(shop)
    append_all(shop, STORE, [gone])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    across_pages = sales(shop)
    append_all(shop, STORE, [gone, again])
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert within_a_page == {"milk": (1, 5, "1"), "tea": (1, 2, "1")}
    assert across_pages == {"tea": (1, 2, "1")}
    assert sales(shop)["milk"] == (1, 5, "1")


def test_composite_keys_json_and_renamed_columns(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("a", 1), ItemScanned("b", 2)], basket="left")
    append_all(shop, STORE, [ItemScanned("c", 2), ItemScanned("none", 0)], basket="left")
    PROJECTIONS.catch_up(shop, Shelves, page_events=1)

    with shop.begin() as conn:
        rows = conn.execute(select(Shelf.aisle, Shelf.name, Shelf.seen, Shelf.note)).all()
    assert sorted(map(tuple, rows)) == [
        (1, "left", ["a"], None),
        (2, "left", ["b", "c"], {"ø": [None, 2]}),
    ]
    assert PROJECTIONS.verify(shop, Shelves).matches


def test_a_table_that_is_only_a_key(shop: Engine) -> None:
    class Names(Projection, into=OnlyKey, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, _row: OnlyKey, _e: ItemScanned, _meta: RecordedEvent) -> None:
            pass

    append_all(shop, STORE, [ItemScanned("a", 1)] * 3)
    PROJECTIONS.catch_up(shop, Names, page_events=2)
    PROJECTIONS.rebuild(shop, Names)

    with shop.begin() as conn:
        assert conn.scalars(select(OnlyKey.name)).all() == ["a"]
    assert PROJECTIONS.verify(shop, Names).matches


def test_windows_without_a_matching_event_move_the_checkpoint(shop: Engine) -> None:
    token = append_all(shop, STORE, [DoorOpened()] * 20)

    done = PROJECTIONS.run(shop, SalesByProduct, page_events=3)

    assert done.events == 0
    assert done.position == token
    assert PROJECTIONS.wait(shop, SalesByProduct, token, timeout_seconds=0) == token


def test_an_empty_log_is_caught_up_with(shop: Engine) -> None:
    done = PROJECTIONS.catch_up(shop, SalesByProduct)

    assert (done.events, done.position, done.caught_up) == (0, 0, True)
    assert PROJECTIONS.verify(shop, SalesByProduct).matches


class Strict(Projection, into=ProductSales, version=1):
    fixed = False

    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1
        row.cents += abs(e.cents) if self.fixed else e.cents
        if e.product == "poison" and not self.fixed:
            raise LookupError("half a \ud800 pair and a \0")


@pytest.mark.parametrize(
    ("poison", "error"),
    [
        (ItemScanned("poison", 1), "LookupError"),
        (ItemScanned("milk", -(10**9)), "IntegrityError"),
        (ItemScanned("x" * 21, 1), "DataError"),
    ],
)
def test_an_event_that_cannot_be_applied_stops_the_projection_right_before_it(
    shop: Engine, poison: ItemScanned, error: str
) -> None:
    append_all(shop, STORE, [*[ItemScanned("milk", 1)] * 4, poison, ItemScanned("after", 1)])

    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.catch_up(shop, Strict)
    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.catch_up(shop, Strict)

    assert stopped.value.position == 5
    assert sales(shop) == {"milk": (4, 4, None)}
    with shop.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert status.position == 4
    assert status.error is not None
    assert (status.error["position"], status.error["error"]) == (5, error)
    assert "Failing row" not in status.error["message"]


def test_a_projection_goes_on_after_a_fix(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    append_all(shop, STORE, [ItemScanned("poison", 1), ItemScanned("after", 1)])
    with pytest.raises(ProjectionStoppedError):
        PROJECTIONS.catch_up(shop, Strict)

    monkeypatch.setattr(Strict, "fixed", True)
    PROJECTIONS.catch_up(shop, Strict)

    assert sales(shop).keys() == {"poison", "after"}
    with shop.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert status.error is None


def test_an_event_that_cannot_be_decoded_stops_the_projection(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    stranger = NewEvent("test.item_scanned", {"product": "milk", "price": 1})
    append_all(shop, STORE, [stranger, ItemScanned("milk", 1)])

    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.catch_up(shop, SalesByProduct)

    assert stopped.value.position == 2
    assert sales(shop) == {"milk": (1, 1, "1")}


def test_a_table_that_is_missing_is_not_blamed_on_an_event(engine: Engine) -> None:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    append_all(engine, STORE, [ItemScanned("milk", 1)])
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE product_sales RENAME COLUMN cents TO pence"))

    with pytest.raises(Exception, match="cents"):
        PROJECTIONS.catch_up(engine, SalesByProduct)

    with engine.begin() as conn:
        (status,) = PROJECTIONS.status(conn)
    assert status.error is None
    assert status.owner is None


def test_a_key_that_only_the_database_finds_equal_is_refused(shop: Engine) -> None:
    class Insensitive(Projection, into=Folded, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Folded, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.count += 1

    append_all(shop, STORE, [ItemScanned("Milk", 1)])
    PROJECTIONS.catch_up(shop, Insensitive)
    append_all(shop, STORE, [ItemScanned("milk", 1)])

    with pytest.raises(ProjectionStoppedError, match="comes back"):
        PROJECTIONS.catch_up(shop, Insensitive)


def test_a_key_of_the_wrong_shape_or_changed_by_a_handler_is_refused(shop: Engine) -> None:
    class WrongShape(Projection, into=Shelf, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Shelf, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.note = {}

    class Renaming(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.product = "other"

    append_all(shop, STORE, [ItemScanned("milk", 1)])
    with pytest.raises(ProjectionStoppedError, match="its key has 2 columns"):
        PROJECTIONS.catch_up(shop, WrongShape)
    with pytest.raises(ProjectionStoppedError, match="changed the key"):
        PROJECTIONS.catch_up(shop, Renaming)


def test_a_misspelt_attribute_is_not_swallowed(shop: Engine) -> None:
    class Typo(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: Any, _e: ItemScanned, _meta: RecordedEvent) -> None:  # noqa: ANN401
            row.quanttiy = 1

    append_all(shop, STORE, [ItemScanned("milk", 1)])
    with pytest.raises(ProjectionStoppedError, match="quanttiy"):
        PROJECTIONS.catch_up(shop, Typo)


def test_a_table_with_rows_but_no_checkpoint_is_not_added_to(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(insert(ProductSales).values(product="milk", quantity=7, cents=7))
    append_all(shop, STORE, [ItemScanned("milk", 1)])

    with pytest.raises(ProjectionVersionError, match="unknown code"):
        PROJECTIONS.catch_up(shop, SalesByProduct)
    PROJECTIONS.rebuild(shop, SalesByProduct)

    assert sales(shop) == {"milk": (1, 1, "1")}


def test_all_works_in_a_schema_of_another_name(shop: Engine) -> None:
    with shop.begin() as conn:
        upgrade(conn, schema="shop_log")
        conn.execute(text("DROP SCHEMA datapatterns CASCADE"))
    store = EventStore("shop_log")
    projections = Projections(store)
    token = append_all(shop, store, [ItemScanned("milk", 1)] * 3)

    projections.catch_up(shop, SalesByProduct, page_events=2)
    projections.wait(shop, SalesByProduct, token, timeout_seconds=0)
    projections.rebuild(shop, SalesByProduct)

    assert projections.verify(shop, SalesByProduct).matches
    assert sales(shop)["milk"][0] == 3
    with shop.begin() as conn:
        (status,) = projections.status(conn)
    assert status.positions_behind == 0


def test_a_page_costs_a_fixed_number_of_statements(shop: Engine) -> None:
    events = [ItemScanned(f"p{n % 700}", n) for n in range(3_000)]
    for start in range(0, len(events), 500):
        append_all(shop, STORE, events[start : start + 500])
    statements: list[str] = []
    counted = create_engine(shop.url)
    event.listen(
        counted,
        "before_cursor_execute",
        lambda _conn, _cursor, statement, *_: statements.append(statement),
    )

    Projections(STORE).run(counted, SalesByProduct, page_events=3_000)
    counted.dispose()

    assert sum("unnest" in statement for statement in statements) == 2
    assert len(statements) < 17
    assert sales(shop) == expected_sales((e, "1") for e in events)


def test_columns_that_cannot_be_folded_are_refused_when_declared_or_first_run() -> None:
    class Arrays(Base):
        __tablename__ = "arrays"
        id: Mapped[int] = mapped_column(primary_key=True)
        values: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))

    class Defaults(Base):
        __tablename__ = "defaults"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[Any] = mapped_column(String, server_default=func.now())

    class Updates(Base):
        __tablename__ = "updates"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[str] = mapped_column(onupdate="x")

    class Expressions(Base):
        __tablename__ = "expressions"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[str] = mapped_column(default=func.now())

    class Parent(Base):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind"}  # noqa: RUF012 -- SQLAlchemy's way

    refused = {
        Arrays: "array",
        Defaults: "default in the server",
        Updates: "onupdate",
        Expressions: "default in SQL",
        Parent: "inheritance",
        dict: "not a mapped class",
    }
    for into, why in refused.items():

        class Refused(Projection, into=into, version=1):
            @on(ItemScanned, key=lambda e, _: e.product)
            def _(self, _row: object, _e: ItemScanned, _meta: RecordedEvent) -> None:
                pass

        with pytest.raises(ProjectionDefinitionError, match=why):
            read_models_of(Refused)
