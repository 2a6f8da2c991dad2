"""What a runner may leave out of a page, and what it must not."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, Engine, event

from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.leasing import Lease, claim
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.event_sourcing import EventStore
from tests.fixtures.read_models import (
    DoorOpened,
    ItemScanned,
    SalesByProduct,
    append,
    append_all,
    create_tables,
    sales,
)

STORE = EventStore()
TABLES = projection_tables(STORE.schema)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


def claimed(conn: Connection) -> Lease:
    with conn.begin():
        register(conn, TABLES, SalesByProduct, empty=True)
        (lease,) = claim(conn, TABLES, SalesByProduct, owner="one", seconds=60)
    return lease


@contextmanager
def marks_asked_for(engine: Engine) -> Iterator[list[str]]:
    asked: list[str] = []

    def note(_conn: object, _cursor: object, statement: str, *_more: object) -> None:
        if "high_water_mark" in statement:
            asked.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield asked
    event.remove(engine, "before_cursor_execute", note)


@contextmanager
def failing_at_the_checkpoint(engine: Engine) -> Iterator[None]:
    def fail(_conn: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith("UPDATE datapatterns.projection_shard"):
            raise RuntimeError

    event.listen(engine, "before_cursor_execute", fail)
    yield
    event.remove(engine, "before_cursor_execute", fail)


def test_the_mark_is_asked_for_again_when_a_page_may_reach_it(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 50)

    with marks_asked_for(shop) as asked:
        done = Projections().run(shop, SalesByProduct, pages_max=100, page_events=10)

    assert (done.events, done.caught_up) == (50, True)
    # Before the first page, before the last one, and to learn that nothing follows.
    assert len(asked) <= 3


def test_the_end_of_an_old_mark_is_not_taken_for_the_end_of_the_log(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 3 + [DoorOpened()] * 20)
    runner = TableRunner(STORE, SalesByProduct, page_events=2)
    with shop.connect() as conn:
        lease, first = runner.page(conn, claimed(conn))
        append_all(shop, STORE, [ItemScanned("milk", 1)])

        lease, second = runner.page(conn, lease)
        lease, third = runner.page(conn, lease)

    assert (first.events, second.events, third.events) == (2, 1, 1)
    assert [done.caught_up for done in (first, second, third)] == [False, False, True]
    assert sales(shop)["milk"][0] == 4


def test_the_mark_of_a_page_that_was_undone_is_forgotten(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 50)
    runner = TableRunner(STORE, SalesByProduct, page_events=10)
    with shop.connect() as conn:
        lease = claimed(conn)
        with failing_at_the_checkpoint(shop), pytest.raises(RuntimeError):
            runner.page(conn, lease)

        with marks_asked_for(shop) as asked:
            lease, _ = runner.page(conn, lease)
            runner.page(conn, lease)

    assert len(asked) == 1  # and that of the page which was committed is not


def test_what_is_not_final_is_not_read_below_an_old_mark_nor_above_it(shop: Engine) -> None:
    append_all(shop, STORE, [ItemScanned("milk", 1)] * 5)
    runner = TableRunner(STORE, SalesByProduct, page_events=2)
    with shop.connect() as conn, shop.connect() as slow:
        lease, _ = runner.page(conn, claimed(conn))
        with slow.begin():
            late = append(slow, STORE, [ItemScanned("milk", 1)])
            append_all(shop, STORE, [ItemScanned("milk", 1)], basket="2")  # final after `late`
            lease, _ = runner.page(conn, lease)
            lease, _ = runner.page(conn, lease)
            lease, stuck = runner.page(conn, lease)
            assert lease.position < late
            assert stuck.caught_up
        lease, done = runner.page(conn, lease)

    assert (lease.position, done.caught_up) == (late + 1, True)
    assert sales(shop)["milk"][0] == 7
