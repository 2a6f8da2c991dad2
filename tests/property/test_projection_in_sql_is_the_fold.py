"""Statements over ranges = the fold in Python = a dict, whatever the pages and the restarts."""

from collections.abc import Sequence
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, delete, text

from datapatterns.cqrs import DELETE, Projection, Projections, TableProjection, on
from datapatterns.cqrs.running.leasing import claim, release
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.set_projecting import SetRunner
from datapatterns.event_sourcing import EventStore, Position, RecordedEvent
from tests.fixtures.effort import dear
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    ProductsMerged,
    ProductWithdrawn,
    append,
    append_all,
    create_tables,
)
from tests.fixtures.set_models import (
    Base,
    BasketTotal,
    KeptProduct,
    ProductTotal,
    Shop,
    TotalByProduct,
    contents,
    expected_contents,
    expected_totals,
    totals,
)

pytestmark = pytest.mark.postgres

STORE = EventStore()
TABLES = projection_tables(STORE.schema)
PROJECTIONS = Projections(STORE)

PRODUCTS = st.sampled_from(["milk", "bröd", "茶", "", "100%", "it's"])
EVENTS = st.one_of(
    st.builds(ItemScanned, PRODUCTS, st.integers(0, 10**12)),
    st.builds(ProductWithdrawn, PRODUCTS),
    st.builds(ProductsMerged, st.lists(PRODUCTS, max_size=3)),
    st.builds(DoorOpened),
)
BATCHES = st.lists(
    st.tuples(
        st.lists(EVENTS, min_size=1, max_size=8), st.sampled_from(["a", "b", "c"]), st.booleans()
    ),
    min_size=1,
    max_size=6,
)


class Folded(Projection, into=(KeptProduct, BasketTotal), version=1):
    """The same as `Shop`, in Python."""

    @on(ItemScanned, into=KeptProduct, key=lambda e, _: e.product)
    def _(self, row: KeptProduct, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1

    @on(ProductWithdrawn, into=KeptProduct, key=lambda e, _: e.product)
    def _(self, _row: KeptProduct, _e: ProductWithdrawn, _meta: RecordedEvent) -> object:
        return DELETE

    @on(ItemScanned, into=BasketTotal, key=lambda _, meta: meta.stream.key)
    def _(self, row: BasketTotal, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.cents += e.cents
        row.last_product = e.product

    @on(ProductWithdrawn, into=BasketTotal, key=lambda _, meta: meta.stream.key)
    def _(self, row: BasketTotal, _e: ProductWithdrawn, _meta: RecordedEvent) -> None:
        row.cents += 0

    @on(DoorOpened, into=BasketTotal, key=lambda _, meta: meta.stream.key)
    def _(self, row: BasketTotal, _e: DoorOpened, _meta: RecordedEvent) -> None:
        row.doors += 1


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    create_tables(module_engine)
    Base.metadata.create_all(module_engine)
    return module_engine


def start_again(
    engine: Engine, projections: Sequence[type[TableProjection]], *, behind: Position | None = None
) -> Position:
    """Empty the tables, and begin behind the log of earlier examples, which stays."""
    with engine.begin() as conn:
        begun = STORE.high_water_mark(conn) if behind is None else behind
        for table in (ProductTotal, KeptProduct, BasketTotal):
            conn.execute(delete(table))
        conn.execute(text("DELETE FROM datapatterns.projection_shard"))
        conn.execute(text("DELETE FROM datapatterns.projection_table"))
        conn.execute(text("DELETE FROM datapatterns.projection"))
        for projection in projections:
            register(conn, TABLES, projection, empty=True)
        conn.execute(text("UPDATE datapatterns.projection_shard SET position = :p"), {"p": begun})
    return begun


def run_page(conn: Connection, *, page_events: int) -> None:
    """Do what a runner does that is started for each page anew."""
    with conn.begin():
        (lease,) = claim(conn, TABLES, Shop, owner=uuid4().hex, seconds=60)
    lease, _ = SetRunner.of(STORE, Shop, page_events).page(conn, lease)
    with conn.begin():
        release(conn, TABLES, lease)


@dear
@given(BATCHES, st.data())
def test_statements_give_what_the_fold_and_a_dict_give(
    shop: Engine, batches: list[tuple[list[object], str, bool]], data: st.DataObject
) -> None:
    begun = start_again(shop, [Shop, TotalByProduct])
    log: list[tuple[object, str]] = []
    sizes = st.integers(1, 9)
    with shop.connect() as conn, shop.connect() as other:
        for events, basket, stays in batches:
            if stays:
                append_all(shop, STORE, events, basket=basket)
                log += [(happened, basket) for happened in events]
            else:  # leaves a gap
                undone = other.begin()
                append(other, STORE, events, basket=basket)
                undone.rollback()
            for _ in range(data.draw(st.integers(0, 2), label="pages")):
                run_page(conn, page_events=data.draw(sizes, label="page_events"))

    PROJECTIONS.catch_up(shop, Shop, page_events=data.draw(sizes, label="page_events"))
    PROJECTIONS.catch_up(shop, TotalByProduct, page_events=data.draw(sizes, label="page_events"))
    by_statements = contents(shop)
    sums = totals(shop)
    start_again(shop, [Folded], behind=begun)
    PROJECTIONS.catch_up(shop, Folded, page_events=4)

    assert by_statements == expected_contents(log)
    assert sums == expected_totals(log)
    assert by_statements == contents(shop)
