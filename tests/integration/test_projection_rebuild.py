"""Rebuild and verify: readers keep what they have, nothing goes back, differences are found."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import Engine, create_engine, event, insert, text, update

from datapatterns.cqrs import Projection, ProjectionProgress, Projections, on
from datapatterns.cqrs.running.leasing import claim
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.errors import (
    LeaseHeldError,
    LeaseLostError,
    ProjectionDefinitionError,
    ProjectionStoppedError,
    ProjectionVersionError,
    ReadModelBuildingError,
)
from datapatterns.event_sourcing import EventStore, RecordedEvent
from datapatterns.testing.waiting import wait_until
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
    def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
        if e.product == "poison":
            raise LookupError(e.product)
        row.quantity += 2
        row.cents += 2 * e.cents


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, [ItemScanned("milk", 10)] * 5 + [ItemScanned("tea", 1)])
    PROJECTIONS.catch_up(engine, SalesByProduct)
    return engine


def statuses(engine: Engine) -> dict[int, str]:
    with engine.begin() as conn:
        return {status.version: status.status for status in PROJECTIONS.status(conn)}


def row_versions(engine: Engine) -> dict[str, str]:
    with engine.begin() as conn:
        rows = conn.execute(text("SELECT product, xmin::text FROM product_sales"))
        return {row.product: row.xmin for row in rows}


def test_another_version_is_refused_until_it_is_rebuilt(shop: Engine) -> None:
    with pytest.raises(ProjectionVersionError) as refused:
        PROJECTIONS.catch_up(shop, Doubled)
    before = sales(shop)

    PROJECTIONS.rebuild(shop, Doubled)

    assert (refused.value.declared, refused.value.live) == (2, 1)
    assert before == {"milk": (5, 50, "1"), "tea": (1, 1, "1")}
    assert sales(shop) == {"milk": (10, 100, None), "tea": (2, 2, None)}
    assert statuses(shop) == {1: "standby", 2: "live"}


def test_old_code_goes_on_in_a_table_of_its_own_until_it_is_retired(shop: Engine) -> None:
    PROJECTIONS.rebuild(shop, Doubled)
    append_all(shop, STORE, [ItemScanned("milk", 10)])

    PROJECTIONS.catch_up(shop, SalesByProduct)

    assert sales(shop)["milk"][0] == 10, "what readers read is folded by the new code only"
    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    PROJECTIONS.retire(shop, SalesByProduct)
    with pytest.raises(ProjectionVersionError):
        PROJECTIONS.catch_up(shop, SalesByProduct)


def test_going_back_to_the_old_version_is_a_rebuild_as_well(shop: Engine) -> None:
    PROJECTIONS.rebuild(shop, Doubled)
    PROJECTIONS.rebuild(shop, SalesByProduct)

    assert sales(shop)["milk"] == (5, 50, "1")
    assert statuses(shop) == {1: "live", 2: "standby"}


def test_readers_see_the_old_rows_until_all_new_ones_are_there(shop: Engine) -> None:
    seen: list[tuple[int, int]] = []

    def look(_done: ProjectionProgress) -> None:
        table = sales(shop)
        seen.append((table["milk"][0], table["tea"][0]))

    PROJECTIONS.rebuild(shop, Doubled, page_events=2, on_page=look)

    assert len(seen) >= 3
    assert set(seen) == {(5, 1)}


def test_a_runner_that_works_on_meanwhile_is_fenced(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 10)])
    runner = TableRunner(STORE, SalesByProduct, page_events=10)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, SalesByProduct, empty=False)
            (lease,) = claim(conn, TABLES, SalesByProduct, owner="old code", seconds=60)
        refused: list[BaseException] = []

        def meanwhile(_done: ProjectionProgress) -> None:
            with pytest.raises(LeaseLostError) as lost:
                runner.page(conn, lease)
            with pytest.raises(LeaseHeldError):
                PROJECTIONS.run(shop, SalesByProduct)
            refused.append(lost.value)

        PROJECTIONS.rebuild(shop, SalesByProduct, on_page=meanwhile)

    assert refused
    assert sales(shop)["milk"][0] == 6


def test_a_runner_of_the_live_version_goes_on_while_another_is_built(shop: Engine) -> None:
    seen: list[int] = []

    def meanwhile(_done: ProjectionProgress) -> None:
        append_all(shop, STORE, [ItemScanned("milk", 10)])
        PROJECTIONS.run(shop, SalesByProduct)
        seen.append(sales(shop)["milk"][0])

    PROJECTIONS.rebuild(shop, Doubled, page_events=2, on_page=meanwhile)

    assert seen == [6, 7, 8]
    assert sales(shop)["milk"][0] == 2 * 8


def test_a_page_under_way_when_the_mending_swaps_leaves_nothing(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("ghost", 10)])
    written, swapping = threading.Event(), threading.Event()

    class Slow(Projection, into=ProductSales, version=1, name="sales_by_product"):
        @on(ItemScanned, key=lambda e, _: e.product)
        def _(self, row: ProductSales, _e: ItemScanned, _meta: RecordedEvent) -> None:
            row.quantity += 1
            written.set()
            assert swapping.wait(timeout=30)

    with ThreadPoolExecutor() as pool:
        page = pool.submit(PROJECTIONS.run, shop, Slow)
        assert written.wait(timeout=30)
        rebuilt = PROJECTIONS.rebuild(shop, SalesByProduct, on_page=lambda _: swapping.set())
        with pytest.raises(LeaseLostError):
            page.result(timeout=30)

    assert rebuilt.events == 7
    assert sales(shop)["ghost"] == (1, 10, "1")


def test_the_swap_waits_for_a_page_under_way_before_it_locks_a_row(shop: Engine) -> None:
    with shop.connect() as page, ThreadPoolExecutor() as pool:
        transaction = page.begin()
        page.execute(text("SET LOCAL lock_timeout = '5s'"))
        page.execute(update(ProductSales).where(ProductSales.product == "tea").values(cents=7))
        rebuild = pool.submit(PROJECTIONS.rebuild, shop, SalesByProduct)
        wait_until(lambda: blocked_sessions(shop) == 1, deadline_seconds=30)

        page.execute(update(ProductSales).where(ProductSales.product == "milk").values(cents=7))
        transaction.rollback()

        assert rebuild.result(timeout=30).events == 6
    assert sales(shop)["milk"] == (5, 50, "1")


def blocked_sessions(engine: Engine) -> int:
    with engine.begin() as conn:
        blocked = conn.execute(
            text(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            )
        )
        return len(blocked.all())


def test_a_long_rebuild_renews_its_lease_with_every_page(shop: Engine) -> None:
    leases: list[datetime] = []

    def look(_done: ProjectionProgress) -> None:
        with shop.begin() as conn:
            leases.extend(
                status.segments[0].lease_until
                for status in PROJECTIONS.status(conn)
                if status.version == 2 and status.segments[0].lease_until is not None
            )

    PROJECTIONS.rebuild(shop, Doubled, page_events=2, on_page=look)

    assert len(leases) >= 3
    assert sorted(set(leases)) == leases


def test_a_rebuild_that_fails_leaves_everything_as_it_was(shop: Engine) -> None:
    before = sales(shop)
    append_all(shop, STORE, [ItemScanned("poison", 1)])

    with pytest.raises(ProjectionStoppedError) as stopped:
        PROJECTIONS.rebuild(shop, Doubled, page_events=4)

    assert stopped.value.position == 7
    assert sales(shop) == before
    with pytest.raises(ProjectionVersionError):
        PROJECTIONS.catch_up(shop, Doubled)  # half built is not built
    PROJECTIONS.catch_up(shop, SalesByProduct)
    assert sales(shop)["poison"][0] == 1


def test_a_rebuild_that_is_taken_over_changes_nothing(shop: Engine) -> None:
    before = sales(shop)

    def steal(_done: ProjectionProgress) -> None:
        with shop.begin() as conn:
            conn.execute(text("UPDATE datapatterns.projection_shard SET epoch = epoch + 1"))

    with pytest.raises(LeaseLostError):
        PROJECTIONS.rebuild(shop, Doubled, on_page=steal)

    assert sales(shop) == before
    assert statuses(shop) == {1: "live", 2: "building"}


def test_only_rows_that_differ_are_written(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(update(ProductSales).where(ProductSales.product == "tea").values(cents=99))
        conn.execute(insert(ProductSales).values(product="ghost", quantity=1, cents=1))
    before = row_versions(shop)

    PROJECTIONS.rebuild(shop, SalesByProduct)

    after = row_versions(shop)
    assert sales(shop) == {"milk": (5, 50, "1"), "tea": (1, 1, "1")}
    assert after["milk"] == before["milk"]
    assert after["tea"] != before["tea"]


def test_a_name_cannot_change_from_a_table_to_redis(shop: Engine) -> None:
    with shop.begin() as conn:
        conn.execute(text("UPDATE datapatterns.projection SET kind = 'redis', targets = '{}'"))

    with pytest.raises(ProjectionDefinitionError, match="taken"):
        PROJECTIONS.run(shop, SalesByProduct)
    with pytest.raises(ProjectionDefinitionError, match="taken"):
        PROJECTIONS.rebuild(shop, SalesByProduct)


def test_verify_finds_differences_on_both_sides(shop: Engine) -> None:
    good = PROJECTIONS.verify(shop, SalesByProduct, page_events=4)
    with shop.begin() as conn:
        conn.execute(update(ProductSales).where(ProductSales.product == "milk").values(quantity=4))
        conn.execute(text("DELETE FROM product_sales WHERE product = 'tea'"))
        conn.execute(insert(ProductSales).values(product="ghost", quantity=1, cents=1))

    found = PROJECTIONS.verify(shop, SalesByProduct)

    assert good.matches
    assert (good.position, good.rows) == (6, 2)
    assert not found.matches
    assert [difference.key for difference in found.differences] == [("ghost",), ("milk",), ("tea",)]
    ghost, milk, tea = found.differences
    assert ghost.expected is None
    assert milk.stored == {"quantity": 4, "cents": 50, "last_basket": "1"}
    assert milk.expected == {"quantity": 5, "cents": 50, "last_basket": "1"}
    assert tea.stored is None
    assert len(PROJECTIONS.verify(shop, SalesByProduct, limit=1).differences) == 1


def test_verify_compares_as_of_the_checkpoint(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("new", 1)])

    found = PROJECTIONS.verify(shop, SalesByProduct)

    assert found.matches
    assert found.position == 6


def test_a_page_commits_while_verify_compares_and_is_not_seen(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("new", 1), ItemScanned("milk", 1)])
    with shop.begin() as conn:
        conn.execute(update(ProductSales).where(ProductSales.product == "milk").values(quantity=4))
    impatient = create_engine(shop.url, connect_args={"options": "-c lock_timeout=300ms"})
    verifying = create_engine(shop.url)
    positions: list[int] = []

    def interrupt(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "hash_record_extended" in statement or "FULL OUTER JOIN" in statement:
            positions.append(PROJECTIONS.run(impatient, SalesByProduct, page_events=1).position)

    event.listen(verifying, "before_cursor_execute", interrupt)
    found = PROJECTIONS.verify(verifying, SalesByProduct)
    impatient.dispose()
    verifying.dispose()

    assert positions[:2] == [7, 8]
    assert sales(shop)["milk"] == (5, 51, "1")
    (milk,) = found.differences
    assert (found.position, milk.key) == (6, ("milk",))
    assert milk.stored == {"quantity": 4, "cents": 50, "last_basket": "1"}
    assert milk.expected == {"quantity": 5, "cents": 50, "last_basket": "1"}


def test_verify_of_what_was_never_run_says_so(engine: Engine) -> None:
    create_tables(engine)
    with pytest.raises(ReadModelBuildingError):
        PROJECTIONS.verify(engine, SalesByProduct)
