"""Who may write which table: one projection, one version, and nobody while it is swapped."""

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from datapatterns.cqrs import Projection, ProjectionProgress, Projections, on
from datapatterns.cqrs.running.leasing import claim
from datapatterns.cqrs.schema import projection_tables
from datapatterns.errors import (
    ProjectionDefinitionError,
    ProjectionVersionError,
    ReadModelBehindError,
    ReadModelMovedError,
)
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
TABLES = projection_tables(STORE.schema)
PROJECTIONS = Projections(STORE)


class Doubled(Projection, into=ProductSales, version=2, name="sales_by_product"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 2


class RenamedClass(Projection, into=ProductSales, version=1):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += 1


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def test_a_table_has_one_projection_even_if_it_is_empty(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, SalesByProduct)

    with pytest.raises(ProjectionDefinitionError, match='name="sales_by_product"'):
        PROJECTIONS.catch_up(shop, RenamedClass)
    with pytest.raises(ProjectionDefinitionError, match='name="sales_by_product"'):
        PROJECTIONS.rebuild(shop, RenamedClass)

    append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    assert sales(shop)["milk"][0] == 1


def test_the_database_refuses_a_second_projection_of_a_table_as_well(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, SalesByProduct)

    with pytest.raises(IntegrityError, match="pk_projection_table"), shop.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO datapatterns.projection_table (name, target)"
                " VALUES ('other', 'public.product_sales')"
            )
        )


def test_a_checkpoint_does_not_count_for_another_table(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    with shop.begin() as conn:
        conn.execute(text("ALTER TABLE product_sales RENAME TO product_sales_before"))
    create_tables(shop)
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    with shop.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.projection SET targets = '{public.product_sales_before}'")
        )

    with pytest.raises(ProjectionDefinitionError, match="product_sales_before"):
        PROJECTIONS.catch_up(shop, SalesByProduct)
    PROJECTIONS.rebuild(shop, SalesByProduct)
    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 2


def test_verify_does_not_compare_with_rows_of_another_version(shop: Engine) -> None:
    class BrokenOffError(Exception):
        pass

    def interrupt(_done: ProjectionProgress) -> None:
        raise BrokenOffError

    append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    with pytest.raises(BrokenOffError):
        PROJECTIONS.rebuild(shop, Doubled, on_page=interrupt)

    with pytest.raises(ProjectionVersionError) as building:
        PROJECTIONS.verify(shop, Doubled)
    PROJECTIONS.rebuild(shop, Doubled)
    aside = PROJECTIONS.verify(shop, SalesByProduct)
    PROJECTIONS.retire(shop, SalesByProduct)
    with pytest.raises(ProjectionVersionError) as retired:
        PROJECTIONS.verify(shop, SalesByProduct)

    assert aside.matches
    assert (building.value.declared, building.value.live) == (2, 1)
    assert (retired.value.declared, retired.value.live) == (1, 2)
    assert PROJECTIONS.verify(shop, Doubled).matches


def test_verify_notices_a_rebuild_that_took_the_place_meanwhile(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    verifying = create_engine(shop.url)

    rebuilt = threading.Event()

    def rebuild(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("LOCK TABLE") and not rebuilt.is_set():
            rebuilt.set()
            PROJECTIONS.rebuild(shop, Doubled)

    event.listen(verifying, "before_cursor_execute", rebuild)
    with pytest.raises(ReadModelMovedError, match="standby"):
        PROJECTIONS.verify(verifying, SalesByProduct)
    verifying.dispose()

    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    assert sales(shop)["milk"][0] == 2


def test_a_wait_for_a_version_that_is_not_in_the_table_says_which_is(shop: Engine) -> None:
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    PROJECTIONS.rebuild(shop, Doubled)
    PROJECTIONS.retire(shop, SalesByProduct)

    with pytest.raises(ReadModelBehindError, match="version 2 has built the table"):
        PROJECTIONS.wait(shop, SalesByProduct, token, timeout_seconds=0)


def test_readers_of_a_version_that_was_replaced_wait_for_what_took_its_place(shop: Engine) -> None:
    PROJECTIONS.catch_up(shop, SalesByProduct)
    PROJECTIONS.rebuild(shop, Doubled)
    token = append_all(shop, STORE, [ItemScanned("milk", 1)])

    with pytest.raises(ReadModelBehindError, match="nobody runs it"):
        PROJECTIONS.wait(shop, SalesByProduct, token, timeout_seconds=0)
    PROJECTIONS.catch_up(shop, Doubled)
    shown = PROJECTIONS.wait(shop, SalesByProduct, token, timeout_seconds=0)

    assert shown == token
    assert sales(shop)["milk"][0] == 2


@pytest.mark.parametrize("rebuilt", [SalesByProduct, Doubled])
def test_a_swap_that_takes_longer_than_the_lease_cannot_be_claimed_away(
    shop: Engine, rebuilt: type[Projection]
) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)])
    PROJECTIONS.catch_up(shop, SalesByProduct)
    rebuilding = create_engine(shop.url)
    refused: list[Any] = []

    def let_the_lease_lapse(_done: ProjectionProgress) -> None:
        with shop.begin() as conn:
            conn.execute(
                text(
                    "UPDATE datapatterns.projection_shard SET lease_until = now() - interval '1s'"
                    " WHERE owner IS NOT NULL"
                )
            )

    def claim_it(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("DELETE FROM product_sales") and "RENAME TO" not in statement:
            return
        with shop.connect() as conn, conn.begin():
            conn.execute(text("SET LOCAL lock_timeout = '200ms'"))
            with pytest.raises(OperationalError, match="lock timeout") as waited:
                claim(conn, TABLES, SalesByProduct, owner="old code", seconds=60)
            refused.append(waited.value)

    event.listen(rebuilding, "before_cursor_execute", claim_it)
    PROJECTIONS.rebuild(rebuilding, rebuilt, on_page=let_the_lease_lapse)
    rebuilding.dispose()

    assert refused
    assert sales(shop)["milk"][0] == rebuilt.version
