"""Each event has its effect once, whoever dies, sleeps, stalls or comes too late."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import OperationalError

from datapatterns.cqrs import Projections
from datapatterns.cqrs.running.leasing import claim, take_over
from datapatterns.cqrs.running.registering import register
from datapatterns.cqrs.schema import projection_tables
from datapatterns.cqrs.tables.table_runner import TableRunner
from datapatterns.errors import LeaseHeldError, LeaseLostError, ReadModelBehindError
from datapatterns.event_sourcing import EventStore
from datapatterns.testing import halted_at
from tests.fixtures.read_models import (
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


def milk(number: int) -> list[object]:
    return [ItemScanned("milk", 100)] * number


def test_a_runner_killed_between_effect_and_checkpoint_leaves_neither(shop: Engine) -> None:
    append_all(shop, STORE, milk(10))
    victim = create_engine(shop.url)

    def kill(conn: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE datapatterns.projection_shard SET position"):
            driver: Any = conn.connection.dbapi_connection
            with shop.begin() as other:
                other.execute(
                    text("SELECT pg_terminate_backend(:pid, 10000)"),
                    {"pid": driver.info.backend_pid},
                )

    event.listen(victim, "before_cursor_execute", kill)

    with pytest.raises(OperationalError):
        Projections().run(victim, SalesByProduct)
    victim.dispose()
    after_kill = sales(shop)
    # The dead runner's lease stands; this one need not wait for it.
    impatient(shop)
    Projections().catch_up(shop, SalesByProduct)

    assert after_kill == {}
    assert sales(shop) == {"milk": (10, 1000, "1")}


def impatient(engine: Engine) -> None:
    """Let all leases lapse, as if their time had passed."""
    with engine.begin() as conn:
        conn.execute(
            text(
                "UPDATE datapatterns.projection_shard"
                " SET lease_until = clock_timestamp() - interval '1 s' WHERE owner IS NOT NULL"
            )
        )


def test_a_second_runner_is_refused_while_the_first_has_the_lease(shop: Engine) -> None:
    append_all(shop, STORE, milk(1))
    with shop.begin() as conn:
        register(conn, TABLES, SalesByProduct, empty=True)
        claim(conn, TABLES, SalesByProduct, owner="first", seconds=60)

    with pytest.raises(LeaseHeldError) as refused:
        Projections().run(shop, SalesByProduct)

    assert refused.value.owner == "first"
    assert sales(shop) == {}


def test_a_runner_whose_lease_lapsed_may_still_commit_if_nobody_took_it(shop: Engine) -> None:
    append_all(shop, STORE, milk(3))
    runner = TableRunner(STORE, SalesByProduct, page_events=2)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, SalesByProduct, empty=True)
            (lease,) = claim(conn, TABLES, SalesByProduct, owner="slow", seconds=60)
        impatient(shop)

        lease, done = runner.page(conn, lease)

    assert done.events == 2
    assert sales(shop)["milk"][0] == 2


def test_a_runner_that_wakes_up_after_its_lease_was_taken_is_fenced(shop: Engine) -> None:
    append_all(shop, STORE, milk(4))
    runner = TableRunner(STORE, SalesByProduct, page_events=2)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, SalesByProduct, empty=True)
            (stale,) = claim(conn, TABLES, SalesByProduct, owner="sleeper", seconds=60)
        impatient(shop)
        with conn.begin():
            # Taken, but not moved: only the epoch tells the sleeper from the owner.
            claim(conn, TABLES, SalesByProduct, owner="heir", seconds=60)

        with pytest.raises(LeaseLostError):
            runner.page(conn, stale)

    assert sales(shop) == {}


def test_a_page_is_not_applied_again_from_a_position_that_was_passed(shop: Engine) -> None:
    append_all(shop, STORE, milk(4))
    runner = TableRunner(STORE, SalesByProduct, page_events=2)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, SalesByProduct, empty=True)
            (lease,) = claim(conn, TABLES, SalesByProduct, owner="one", seconds=60)
        runner.page(conn, lease)

        with pytest.raises(LeaseLostError):
            runner.page(conn, lease)  # as after a COMMIT whose answer was lost

    assert sales(shop)["milk"][0] == 2


def test_a_version_that_was_retired_while_a_claim_waited_cannot_move(shop: Engine) -> None:
    append_all(shop, STORE, milk(2))
    runner = TableRunner(STORE, SalesByProduct, page_events=10)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, SalesByProduct, empty=True)
            (lease,) = claim(conn, TABLES, SalesByProduct, owner="one", seconds=60)
        with shop.begin() as other:
            other.execute(text("UPDATE datapatterns.projection SET status = 'retired'"))

        with pytest.raises(LeaseLostError):
            runner.page(conn, lease)

    assert sales(shop) == {}


def test_two_runners_at_once_share_the_work_without_doubling_it(shop: Engine) -> None:
    for basket in range(20):
        append_all(shop, STORE, milk(25), basket=str(basket))
    barrier = threading.Barrier(3)

    def run() -> int:
        barrier.wait(timeout=10)
        return Projections().catch_up(shop, SalesByProduct, page_events=7).events

    with ThreadPoolExecutor() as pool:
        shares = [pool.submit(run) for _ in range(3)]
        applied = sum(share.result(timeout=60) for share in shares)

    assert applied == 500
    assert sales(shop)["milk"][:2] == (500, 50_000)


def test_an_event_that_commits_late_is_not_skipped(shop: Engine) -> None:
    projections = Projections()
    append_all(shop, STORE, [ItemScanned("first", 1)], basket="first")
    with shop.connect() as slow:
        transaction = slow.begin()
        append(slow, STORE, [ItemScanned("late", 1)], basket="slow")
        token = append_all(shop, STORE, [ItemScanned("early", 1)], basket="quick")

        first = projections.run(shop, SalesByProduct)
        with pytest.raises(ReadModelBehindError):
            projections.catch_up(shop, SalesByProduct, until=token, timeout_seconds=0.01)
        held_back = sales(shop)
        transaction.commit()
    projections.catch_up(shop, SalesByProduct, until=token)

    assert first.events == 1
    assert held_back.keys() == {"first"}
    assert sales(shop).keys() == {"first", "late", "early"}


def test_an_append_that_is_rolled_back_leaves_no_trace(shop: Engine) -> None:
    with shop.connect() as conn:
        transaction = conn.begin()
        append(conn, STORE, milk(3))
        transaction.rollback()
    token = append_all(shop, STORE, milk(1))

    done = Projections().catch_up(shop, SalesByProduct)

    assert done.position >= token
    assert sales(shop) == {"milk": (1, 100, "1")}


def test_an_engine_that_defaults_to_repeatable_read_changes_nothing(shop: Engine) -> None:
    append_all(shop, STORE, milk(2))
    strict = create_engine(shop.url, isolation_level="REPEATABLE READ")

    Projections().catch_up(strict, SalesByProduct)

    with strict.connect() as conn:
        level = conn.scalar(select(text("current_setting('transaction_isolation')")))
    strict.dispose()
    assert sales(shop)["milk"][0] == 2
    assert level == "repeatable read"


def test_taking_over_fences_whoever_runs(shop: Engine) -> None:
    append_all(shop, STORE, milk(2))
    runner = TableRunner(STORE, SalesByProduct, page_events=10)
    with shop.connect() as conn:
        with conn.begin():
            register(conn, TABLES, SalesByProduct, empty=True)
            (lease,) = claim(conn, TABLES, SalesByProduct, owner=uuid4().hex, seconds=60)
        with conn.begin():
            take_over(conn, TABLES, SalesByProduct, owner="boss", seconds=60, all_versions=True)

        with pytest.raises(LeaseLostError):
            runner.page(conn, lease)

    assert sales(shop) == {}


@pytest.mark.parametrize("place", ["projection.page-applied", "projection.page-committed"])
def test_a_runner_that_stands_still_does_not_keep_its_locks_for_ever(
    shop: Engine, place: str
) -> None:
    append_all(shop, STORE, milk(2))
    hasty = Projections(STORE, lease_seconds=0.05)  # ten of them is half a second
    slow = create_engine(shop.url)

    with halted_at(place) as standing, ThreadPoolExecutor(1) as pool:
        zombie = pool.submit(hasty.run, slow, SalesByProduct)
        standing.wait()
        heir = Projections(STORE).catch_up(shop, SalesByProduct, timeout_seconds=20)
        standing.release()
        undone = zombie.exception()
    slow.dispose()

    assert heir.position == 2
    assert (undone is None) == (place == "projection.page-committed")
    assert sales(shop)["milk"][0] == 2
