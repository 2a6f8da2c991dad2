"""A projection is folded when somebody asks, from a few events, and stored nowhere."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, select, text

from datapatterns.cqrs import DELETE, Projection, Projections, on
from datapatterns.cqrs.tables import live
from datapatterns.errors import (
    IsolationLevelError,
    LiveFoldLimitError,
    ProjectionDefinitionError,
    ProjectionStoppedError,
)
from datapatterns.event_sourcing import (
    ANY,
    EventStore,
    LogFilter,
    NewEvent,
    Position,
    RecordedEvent,
    StreamId,
    Tagged,
    event,
)
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductSales,
    ProductWithdrawn,
    SalesByProduct,
    append,
    append_all,
    create_tables,
    sales,
)
from tests.fixtures.set_models import TotalByProduct
from tests.integration.test_projection_of_several_tables import Price, PricesOfProducts, Product

pytestmark = pytest.mark.postgres

STORE = EventStore()
PROJECTIONS = Projections(STORE)
BASKET = StreamId("basket", "1")
BASKETS = LogFilter(categories=["basket"])


@event("test.seat_booked", tags=lambda e: (f"flight:{e.flight}",))
@dataclass(frozen=True, slots=True)
class SeatBooked:
    flight: str
    seat: str


class SeatsByFlight(Projection, into=ProductSales, version=1):
    @on(SeatBooked, key=lambda e, _: e.flight)
    def _(self, row: ProductSales, _e: SeatBooked, _meta: RecordedEvent) -> None:
        row.quantity += 1


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def asked(conn: Connection, **named: Any) -> dict[object, tuple[int, int, str | None]]:  # noqa: ANN401 -- passed on
    rows = PROJECTIONS.live(conn, SalesByProduct, **named).of(ProductSales)
    return {key: (row.quantity, row.cents, row.last_basket) for key, row in rows.items()}


def test_a_stream_is_folded_and_nothing_is_stored(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100), DoorOpened(), ItemScanned("tea", 250)])
    append_all(shop, STORE, [ItemScanned("milk", 90), ProductWithdrawn("tea")])
    append_all(shop, STORE, [ItemScanned("milk", 1)], basket="2")

    with shop.begin() as conn:
        found = PROJECTIONS.live(conn, SalesByProduct, of=BASKET)

    assert found.rows.keys() == {"milk"}
    assert (found.rows["milk"].quantity, found.rows["milk"].cents) == (2, 190)
    assert found.events == 5
    assert sales(shop) == {}
    with shop.begin() as conn:
        assert PROJECTIONS.status(conn) == []


def test_a_stream_is_seen_as_the_callers_transaction_sees_it(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100)])
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")

    with strict.connect() as conn, conn.begin() as transaction:
        append(conn, STORE, [ItemScanned("milk", 10)])
        own = asked(conn, of=BASKET)
        transaction.rollback()
    strict.dispose()
    with shop.begin() as conn:
        after = asked(conn, of=BASKET)

    assert own == {"milk": (2, 110, "1")}
    assert after == {"milk": (1, 100, "1")}


def test_a_stream_as_of_a_version(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", n) for n in range(1, 5)])

    with shop.begin() as conn:
        of_version = [asked(conn, of=BASKET, at=version) for version in (0, 1, 3, 99)]

    assert [rows.get("milk", (0,))[0] for rows in of_version] == [0, 1, 3, 4]


def test_as_of_a_time(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    with shop.begin() as conn:
        between = conn.scalar(text("SELECT clock_timestamp()"))
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    append_all(shop, STORE, [ItemScanned("milk", 1)], basket="2")
    long_ago, at_last = (datetime(2000, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC))

    with shop.begin() as conn:
        for of, now in ((BASKET, 2), (BASKETS, 3)):
            assert asked(conn, of=of, at=between)["milk"][0] == 1
            assert asked(conn, of=of, at=between + timedelta(days=1))["milk"][0] == now
            assert asked(conn, of=of, at=long_ago) == {}
            assert asked(conn, of=of, at=at_last)["milk"][0] == now
        with pytest.raises(ValueError, match="no time zone"):
            asked(conn, of=BASKET, at=between.replace(tzinfo=None))


def test_a_filter_of_the_log_as_of_a_position(shop: Engine) -> None:
    for basket in ("1", "2", "3"):
        append_all(shop, STORE, [ItemScanned("milk", 1), DoorOpened()], basket=basket)

    with shop.begin() as conn:
        numbers = [asked(conn, of=BASKETS, at=Position(n)).get("milk") for n in (0, 1, 4, 5, 6)]
        others = asked(conn, of=LogFilter(categories=["other"]))
        none = asked(conn, of=LogFilter(event_types=["test.door_opened"]))

    assert numbers == [None, (1, 1, "1"), (2, 2, "2"), (3, 3, "3"), (3, 3, "3")]
    assert others == none == {}


@pytest.mark.parametrize("page_events", [1, 2, 1_000])
def test_a_tag_query_is_folded_whatever_the_pages(
    shop: Engine, page_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_PAGE_EVENTS", page_events)
    with shop.begin() as conn:
        for n in range(5):
            seats = [SeatBooked("LH1", f"{n}a"), SeatBooked("LH2", f"{n}b")]
            STORE.append(conn, StreamId("booking", str(n)), seats, expected_version=ANY)
            elsewhere = StreamId("booking", str(n), "tenant")
            STORE.append(conn, elsewhere, seats[:1], expected_version=ANY)
            STORE.append(conn, BASKET, [ItemScanned("milk", 1)], expected_version=ANY)

    with shop.begin() as conn:
        query = Tagged(("flight:LH1",))
        one = PROJECTIONS.live(conn, SeatsByFlight, of=query)
        both = PROJECTIONS.live(conn, SeatsByFlight, of=query | Tagged(("flight:LH2",)))
        early = PROJECTIONS.live(conn, SeatsByFlight, of=query, at=5)
        theirs = PROJECTIONS.live(conn, SeatsByFlight, of=query, tenant="tenant")
        milk = asked(conn, of=BASKET)
        whole = asked(conn, of=LogFilter())

    assert {key: row.quantity for key, row in one.rows.items()} == {"LH1": 5}
    assert {key: row.quantity for key, row in both.rows.items()} == {"LH1": 5, "LH2": 5}
    assert early.rows["LH1"].quantity == 2
    assert theirs.rows["LH1"].quantity == 5
    assert milk == whole == {"milk": (5, 5, "1")}


def test_what_is_not_final_is_no_part_of_a_filter(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    with shop.connect() as slow:
        transaction = slow.begin()
        append(slow, STORE, [ItemScanned("milk", 1)], basket="slow")
        append_all(shop, STORE, [ItemScanned("milk", 1)], basket="3")
        own = asked(slow, of=BASKETS)
        with shop.begin() as conn:
            others = asked(conn, of=BASKETS)
        transaction.rollback()

    assert own["milk"][0] == others["milk"][0] == 1


def test_rows_of_several_tables_are_given_by_their_class(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 100), ItemScanned("milk", 90)])

    with shop.begin() as conn:
        found = PROJECTIONS.live(conn, PricesOfProducts, of=BASKET)

    assert found.of(Product)["milk"].scanned == 2
    assert found.of(Price)["milk", 90].times == 1
    with pytest.raises(ValueError, match="one of Product, Price"):
        _ = found.rows
    with pytest.raises(ValueError, match="none of its tables"):
        found.of(ProductSales)


def test_more_events_than_were_asked_for_are_refused(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 5)

    with shop.begin() as conn:
        assert PROJECTIONS.live(conn, SalesByProduct, of=BASKET, limit=5).events == 5
        with pytest.raises(LiveFoldLimitError):
            PROJECTIONS.live(conn, SalesByProduct, of=BASKETS, limit=4)
        with pytest.raises(LiveFoldLimitError, match="more than 4 events") as refused:
            PROJECTIONS.live(conn, SalesByProduct, of=BASKET, limit=4)
        with pytest.raises(ValueError, match="at least 1"):
            PROJECTIONS.live(conn, SalesByProduct, of=BASKET, limit=0)

    assert (refused.value.projection, refused.value.limit) == ("sales_by_product", 4)


def test_an_event_that_cannot_be_folded_is_named(shop: Engine) -> None:
    class Strict(Projection, into=ProductSales, version=1):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> object:
            row.cents += 100 // e.cents
            return DELETE if e.cents == 1 else None

    append_all(shop, STORE, [ItemScanned("milk", n) for n in (4, 2, 0, 1)])

    with shop.begin() as conn, pytest.raises(ProjectionStoppedError, match="position 3") as stopped:
        PROJECTIONS.live(conn, Strict, of=BASKET)

    assert isinstance(stopped.value.__cause__, ZeroDivisionError)


def test_what_lies_in_the_stream_beside_what_is_folded_need_not_be_declared(shop: Engine) -> None:
    with shop.begin() as conn:
        unknown = NewEvent("nobody.knows", {})
        STORE.append(conn, BASKET, [unknown, ItemScanned("milk", 1)], expected_version=ANY)
        assert asked(conn, of=BASKET)["milk"][0] == 1


def test_only_folds_in_python_can_be_folded_at_read(shop: Engine) -> None:
    other: Any = TotalByProduct
    with shop.begin() as conn, pytest.raises(ProjectionDefinitionError, match="folds in Python"):
        PROJECTIONS.live(conn, other, of=BASKET)


def test_a_filter_in_an_older_snapshot_is_refused(shop: Engine) -> None:
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")
    with strict.begin() as conn:
        conn.execute(select(1))
        with pytest.raises(IsolationLevelError):
            asked(conn, of=BASKETS)
    strict.dispose()
