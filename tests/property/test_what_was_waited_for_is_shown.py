"""P7: when a wait returns the read model holds the write; else it says so at its deadline."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, func, select, text

from datapatterns.cqrs import Projections, Token, latest_token
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing import START, EventStore, Position
from datapatterns.testing import ManualClock
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append,
    append_all,
    create_tables,
)

STORE = EventStore()
MILK = ItemScanned("milk", 1)


def quantity(conn: Connection) -> int:
    return conn.scalar(select(func.sum(ProductSales.quantity))) or 0


@dataclass
class Shop:
    """The simplest that could be right: where each item is in the log.

    Attributes:
        items: Positions of the items that were scanned, in their order.
        tokens: What writes have returned, those of other events and undone ones among them.
    """

    engine: Engine
    projections: Projections
    items: list[Position] = field(default_factory=list)
    tokens: list[Position] = field(default_factory=list)
    seen: Token | None = None

    def scan(self) -> None:
        self.items.append(append_all(self.engine, STORE, [MILK]))
        self.tokens.append(self.items[-1])

    def open_door(self) -> None:
        self.tokens.append(append_all(self.engine, STORE, [DoorOpened()]))

    def undo(self) -> None:
        with self.engine.connect() as conn:
            self.tokens.append(append(conn, STORE, [MILK]))
            conn.rollback()

    def page(self) -> None:
        self.projections.run(self.engine, SalesByProduct, page_events=1)

    def catch_up(self) -> None:
        self.projections.catch_up(self.engine, SalesByProduct)

    def rebuild(self) -> None:
        self.projections.rebuild(self.engine, SalesByProduct)

    def wait(self) -> None:
        for token in self.tokens[-3:]:
            try:
                reached = self.projections.wait(
                    self.engine, SalesByProduct, token, timeout_seconds=0.01
                )
            except ReadModelBehindError as error:
                self.is_behind(error, token)
                continue
            assert reached >= token
            with self.engine.begin() as conn:
                assert quantity(conn) >= self.up_to(token)

    def ask(self) -> None:
        for token in self.tokens[-2:]:
            try:
                answer = self.projections.query(
                    self.engine,
                    SalesByProduct,
                    quantity,
                    after=token,
                    timeout_seconds=0.01,
                    stale="serve",
                )
            except ReadModelBehindError as error:
                self.is_behind(error, START)
                continue
            shown = self.up_to(answer.position)
            assert answer.value == shown
            assert answer.is_stale == (answer.position < token)
            assert answer.positions_behind is not None
            assert (answer.seconds_behind > 0) == (answer.positions_behind > 0)
            assert self.seen is None or self.seen <= answer.token
            self.seen = latest_token(self.seen, answer.token)

    def is_behind(self, error: ReadModelBehindError, token: Position) -> None:
        assert error.position is None or error.position < token
        with self.engine.begin() as conn:
            assert self.projections.position(conn, SalesByProduct) == error.position

    def up_to(self, position: Position) -> int:
        return sum(item <= position for item in self.items)


@pytest.fixture(scope="module")
def shop_engine(module_engine: Engine) -> Engine:
    create_tables(module_engine)
    return module_engine


STEPS = ["scan", "open_door", "undo", "page", "catch_up", "rebuild", "wait", "ask"]


@given(st.lists(st.sampled_from(STEPS), min_size=6, max_size=25))
def test_a_wait_returns_with_the_write_or_raises(shop_engine: Engine, steps: list[str]) -> None:
    with shop_engine.begin() as conn:
        conn.execute(text("TRUNCATE product_sales"))
        conn.execute(text("DELETE FROM datapatterns.projection_shard"))
        conn.execute(text("DELETE FROM datapatterns.projection_table"))
        conn.execute(text("DELETE FROM datapatterns.projection"))
        begin = STORE.high_water_mark(conn)
    shop = Shop(shop_engine, Projections(STORE, clock=ManualClock()))
    shop.items = positions_of_items(shop_engine)
    shop.tokens = [begin] if begin else []
    for step in steps:
        getattr(shop, step)()
    shop.catch_up()
    shop.wait()
    shop.ask()


def positions_of_items(engine: Engine) -> list[Position]:
    with engine.begin() as conn:
        page = STORE.read_log(conn, limit=100_000, event_types=["test.item_scanned"])
    return [recorded.position for recorded in page.events]
