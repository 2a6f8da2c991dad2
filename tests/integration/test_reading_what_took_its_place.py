"""Code that knows the version before reads what was promoted, and is told how that stands."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, select, text

from datapatterns.cqrs import InlineProjections, Projection, Projections, on
from datapatterns.errors import ReadModelBehindError
from datapatterns.event_sourcing import EventStore, RecordedEvent, StreamId
from datapatterns.testing import Databases
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductSales,
    SalesByProduct,
    append_all,
    create_tables,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
MILK = ItemScanned("milk", 1)


class Doubled(Projection, into=ProductSales, version=2, name="sales_by_product"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 2


PROJECTIONS = Projections(STORE)


@pytest.fixture
def events(databases: Databases) -> Iterator[Engine]:
    """Where the events are, if not beside the read models."""
    with databases.lend() as url:
        engine = create_engine(url)
        yield engine
        engine.dispose()


def quantity(conn: Connection) -> int:
    return conn.scalar(select(func.sum(ProductSales.quantity))) or 0


def promoted(engine: Engine, events: Engine, projections: Projections) -> None:
    create_tables(engine)
    append_all(events, STORE, [MILK])
    projections.run(engine, SalesByProduct)
    projections.rebuild(engine, Doubled)


def test_what_appends_keep_in_its_place_is_waited_for(engine: Engine) -> None:
    promoted(engine, engine, PROJECTIONS)
    keeping = EventStore(inline=InlineProjections((Doubled,)))
    PROJECTIONS.make_inline(engine, Doubled)
    with engine.connect() as conn:
        keeping.append(conn, StreamId("basket", "open"), [DoorOpened()], expected_version=0)
        token = append_all(engine, keeping, [MILK])
        with pytest.raises(ReadModelBehindError, match="is still open"):
            PROJECTIONS.wait(engine, SalesByProduct, token, timeout_seconds=0)
        conn.rollback()

    assert PROJECTIONS.wait(engine, SalesByProduct, token, timeout_seconds=0) == token
    answer = PROJECTIONS.query(engine, SalesByProduct, quantity, after=token, timeout_seconds=0)
    assert answer.value == 4


def test_what_was_put_aside_in_its_place_is_told(engine: Engine) -> None:
    promoted(engine, engine, PROJECTIONS)
    with engine.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection_shard SET parked = 3 WHERE version = 2"))

    assert PROJECTIONS.query(engine, SalesByProduct, quantity).parked == 3
    assert PROJECTIONS.query(engine, Doubled, quantity).parked == 3


def test_an_answer_is_as_old_as_what_took_its_place(engine: Engine, events: Engine) -> None:
    """Although the one before follows the log in tables of its own, on time."""
    far = Projections(STORE, events_from=events)
    promoted(engine, events, far)
    far.run(engine, Doubled)
    append_all(events, STORE, [MILK])
    far.run(engine, SalesByProduct)
    an_hour_ago = "UPDATE datapatterns.projection_followed_log SET caught_up_at = now() - {}"
    with engine.begin() as conn:
        conn.execute(text(an_hour_ago.format("interval '1h' WHERE version = 2")))

    for version in (SalesByProduct, Doubled):
        answer = PROJECTIONS.query(
            engine,
            version,
            quantity,
            max_staleness_seconds=1_800,
            timeout_seconds=0,
            stale="serve",
        )
        assert (answer.value, answer.is_stale) == (2, True)
