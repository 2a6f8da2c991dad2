"""A read model that stops being kept inline while it is asked shows no more than it has."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns.cqrs import InlineProjections, Projections
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing import EventStore, Position
from tests.fixtures.read_models import (
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
)

STORE = EventStore()
PROJECTIONS = Projections(STORE)
MILK = ItemScanned("milk", 1)

Read = Callable[[Position], object]


@dataclass(frozen=True)
class Interrupted(EventStore):
    """Lets something happen just before it tells how far the log is final, once."""

    meanwhile: list[Callable[[], object]] = field(default_factory=list)

    def high_water_mark(self, conn: Connection, *, published: bool = False) -> Position:
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().high_water_mark(conn, published=published)


@pytest.fixture
def interrupted(engine: Engine) -> Iterator[Interrupted]:
    """The store of a reader of what appends keep."""
    create_tables(engine)
    append_all(engine, STORE, [MILK])
    PROJECTIONS.make_inline(engine, SalesByProduct)
    yield Interrupted()
    PROJECTIONS.make_async(engine, SalesByProduct)


@pytest.fixture(params=["wait", "wait_async", "query", "query_async"])
def read(request: pytest.FixtureRequest, engine: Engine, interrupted: Interrupted) -> Read:
    projections = Projections(interrupted)

    def quantity(conn: Connection) -> int:
        return conn.scalar(select(func.sum(ProductSales.quantity))) or 0

    async def reading(token: Position) -> object:
        async_engine = create_async_engine(engine.url)
        try:
            if request.param == "wait_async":
                return await projections.wait_async(
                    async_engine, SalesByProduct, token, timeout_seconds=0
                )
            return await projections.query_async(
                async_engine, SalesByProduct, quantity, after=token, timeout_seconds=0
            )
        finally:
            await async_engine.dispose()

    def read(token: Position) -> object:
        if request.param == "wait":
            return projections.wait(engine, SalesByProduct, token, timeout_seconds=0)
        if request.param == "query":
            return projections.query(
                engine, SalesByProduct, quantity, after=token, timeout_seconds=0
            )
        return asyncio.run(reading(token))

    return read


def test_what_is_appended_after_the_switch_does_not_show(
    engine: Engine, interrupted: Interrupted, read: Read
) -> None:
    def switch() -> None:
        PROJECTIONS.make_async(engine, SalesByProduct)
        append_all(engine, STORE, [MILK])

    interrupted.meanwhile.append(switch)
    keeping = EventStore(inline=InlineProjections((SalesByProduct,)))
    # The position of what is appended in the middle.
    coming = Position(append_all(engine, keeping, [MILK]) + 1)

    with pytest.raises(ReadModelBehindError):
        read(coming)
    assert not interrupted.meanwhile


def test_what_is_there_is_shown_although_it_was_switched(
    engine: Engine, interrupted: Interrupted, read: Read
) -> None:
    interrupted.meanwhile.append(lambda: PROJECTIONS.make_async(engine, SalesByProduct))
    keeping = EventStore(inline=InlineProjections((SalesByProduct,)))
    token = append_all(engine, keeping, [MILK])

    read(token)
    assert not interrupted.meanwhile
