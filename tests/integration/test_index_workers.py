"""Workers that keep indexes of mode async, how far these are behind, and waiting for a write."""

import asyncio
from collections.abc import Iterator
from threading import Thread

import pytest
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from datapatterns import DataLayer
from datapatterns.change_log import ChangeLog, ChangeToken, change_token
from datapatterns.errors import (
    ConfigurationError,
    IndexBehindError,
    IndexDetachedError,
    IndexNotReadyError,
)
from datapatterns.index_table import Indexes, IndexTable
from datapatterns.index_table.working import PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN
from datapatterns.runtime import CollectLoop, IndexLoop, Worker
from datapatterns.testing import ManualClock
from tests.fixtures.index_tables import assert_agrees, build, customer, order_line, run, tables
from tests.fixtures.observers import Noted

pytestmark = pytest.mark.postgres

WAIT_SECONDS = 30.0
by_product = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note], mode="async"
)
by_note = IndexTable("line_by_note", on=[order_line.c.note], mode="async")
by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)


@pytest.fixture(autouse=True)
def built(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line SELECT g, g, 'n' || g FROM generate_series(1, 20) g")
    build(engine, by_product)


def write(engine: Engine, statement: str) -> ChangeToken:
    with engine.begin() as conn:
        run(conn, statement)
        return change_token(conn)


def found(engine: Engine, key: int) -> list[int]:
    with engine.connect() as conn:
        return [row.id for row in by_product.lookup(conn, key)]


def test_a_worker_takes_in_what_is_pending_and_pauses_longer_while_there_is_nothing(
    engine: Engine,
) -> None:
    told = Noted()
    worker = Indexes([by_product, by_email]).worker(clock=ManualClock(), observer=told)
    assert worker.indexes == [by_product], "the other one is kept by its writers"
    write(engine, "UPDATE order_line SET product_id = 5 WHERE id IN (6, 7)")

    pauses = [worker.step(engine) for _ in range(6)]

    assert pauses[0] == PAUSE_SECONDS_MIN
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_SECONDS_MAX
    assert found(engine, 5) == [5, 6, 7]
    assert told.total("datapatterns.index.entries") == 4
    assert told.durations["datapatterns.index.behind"][0] > 0.0


def test_an_index_that_fails_rests_and_holds_up_no_other(engine: Engine) -> None:
    build(engine, by_note)
    clock = ManualClock()
    worker = Indexes([by_product, by_note]).worker(clock=clock)
    with engine.begin() as conn:
        ChangeLog().forget_consumer(conn, "index_table:line_by_product")
    write(engine, "UPDATE order_line SET note = 'x' WHERE id = 6")

    worker.step(engine)

    assert isinstance(worker.troubles["line_by_product"], IndexDetachedError)
    with engine.connect() as conn:
        assert len(by_note.lookup(conn, "x")) == 1
    with engine.begin() as conn:
        by_product.repair(conn)
    worker.step(engine)
    assert worker.troubles, "it rests"
    clock.advance(1)
    worker.step(engine)
    assert not worker.troubles


def test_an_index_that_is_not_created_here_is_passed_over(engine: Engine) -> None:
    worker = Indexes([by_note]).worker()

    worker.step(engine)

    assert not worker.troubles


def test_a_database_that_does_not_answer_is_no_indexs_fault() -> None:
    worker = Indexes([by_product]).worker()
    away = create_engine("postgresql+psycopg://ann@127.0.0.1:1/shop")

    with pytest.raises(Exception, match="refused"):
        worker.step(away)

    assert worker.troubles == {}


def test_status_says_how_far_each_is_behind(engine: Engine) -> None:
    indexes = Indexes([by_product])
    with engine.connect() as conn:
        [before] = indexes.status(conn)
    write(engine, "UPDATE order_line SET product_id = 5 WHERE id IN (6, 7)")
    with engine.connect() as conn:
        [behind] = indexes.status(conn)
    write(engine, "ALTER TABLE order_line DISABLE TRIGGER ALL")
    with engine.connect() as conn:
        [detached] = indexes.status(conn)
        lag = by_product.lag(conn)

    assert before.lag is not None
    assert (before.state, before.lag.pending_rows, before.lag.behind_seconds) == ("ready", 0, 0.0)
    assert behind.lag is not None
    assert behind.lag.pending_rows == 4, "what each row was, and what it is"
    assert behind.lag.behind_seconds > 0.0
    assert detached.state == "detached"
    assert lag.must_rebuild


def test_an_index_that_its_writers_keep_is_never_behind(engine: Engine) -> None:
    build(engine, by_email)
    token = write(engine, "INSERT INTO customer VALUES (1, 1, 'ann@x.example')")
    with engine.connect() as conn:
        lag = by_email.lag(conn)
        assert by_email.covering(conn, "ann@x.example").behind_seconds == 0.0

    by_email.wait(engine, token, timeout_seconds=0.0)

    assert (lag.pending_rows, lag.behind_seconds) == (0, 0.0)


# -- waiting ---------------------------------------------------------------------------------------


def test_who_waits_for_a_write_finds_it(engine: Engine) -> None:
    token = write(engine, "UPDATE order_line SET product_id = 5 WHERE id = 6")
    with pytest.raises(IndexBehindError, match="datapatterns indexes lag"):
        by_product.wait(engine, token, timeout_seconds=0.0)

    Indexes([by_product]).worker().step(engine)

    by_product.wait(engine, token, timeout_seconds=0.0)
    assert found(engine, 5) == [5, 6]


def test_a_write_to_another_table_need_not_be_waited_for(engine: Engine) -> None:
    token = write(engine, "INSERT INTO customer VALUES (1, 1, 'ann@x.example')")

    by_product.wait(engine, token, timeout_seconds=0.0)


def test_a_write_that_is_not_committed_is_not_there(engine: Engine) -> None:
    with engine.connect() as writer:
        run(writer, "INSERT INTO customer VALUES (1, 1, 'ann@x.example')")
        token = change_token(writer)
        with pytest.raises(IndexBehindError):
            by_product.wait(engine, token, timeout_seconds=0.0)
        writer.rollback()
    by_product.wait(engine, token, timeout_seconds=0.0)


def test_a_token_of_another_cluster_is_refused(engine: Engine) -> None:
    token = write(engine, "DELETE FROM order_line WHERE id = 1")

    with pytest.raises(ValueError, match="another cluster"):
        by_product.wait(
            engine, ChangeToken(token.system_identifier + 1, token.xid), timeout_seconds=0.0
        )


def test_an_index_that_has_to_be_read_anew_contains_nothing_for_certain(engine: Engine) -> None:
    token = write(engine, "UPDATE order_line SET product_id = 5 WHERE id = 6")
    with engine.begin() as conn:
        ChangeLog().restart_laggards(conn, pending_rows_max=1)

    with pytest.raises(IndexBehindError):
        by_product.wait(engine, token, timeout_seconds=0.0)
    Indexes([by_product]).worker().step(engine)
    by_product.wait(engine, token, timeout_seconds=0.0)


def test_an_index_that_is_not_read_is_not_waited_for(engine: Engine) -> None:
    with engine.begin() as conn:
        by_note.create(conn)
        token = change_token(conn)
    with pytest.raises(IndexNotReadyError):
        by_note.wait(engine, token, timeout_seconds=0.0)


def test_a_task_waits_as_well(engine: Engine) -> None:
    token = write(engine, "UPDATE order_line SET product_id = 5 WHERE id = 6")

    async def wait() -> None:
        shared = create_async_engine(engine.url)
        try:
            with pytest.raises(IndexBehindError):
                await by_product.wait_async(shared, token, timeout_seconds=0.0)
            Indexes([by_product]).worker().step(engine)
            await by_product.wait_async(shared, token, timeout_seconds=WAIT_SECONDS)
        finally:
            await shared.dispose()

    asyncio.run(wait())


# -- the worker of a layer -------------------------------------------------------------------------


@pytest.fixture
def layer(database_url: URL) -> Iterator[DataLayer]:
    with DataLayer(database_url, indexes=[by_product, by_email]) as layer:
        yield layer


def running(worker: Worker) -> Thread:
    thread = Thread(target=worker.run)
    thread.start()
    return thread


def test_workers_of_a_layer_keep_indexes_until_they_are_stopped(
    engine: Engine, layer: DataLayer
) -> None:
    workers = [layer.worker() for _ in range(2)]
    threads = [running(worker) for worker in workers]
    try:
        for statement in (
            "UPDATE order_line SET product_id = product_id + 1",
            "DELETE FROM order_line WHERE id = 3",
            "TRUNCATE order_line",
        ):
            write(engine, statement)
        token = write(engine, "INSERT INTO order_line VALUES (1, 5, 'last')")
        by_product.wait(engine, token, timeout_seconds=WAIT_SECONDS)
        assert found(engine, 5) == [1]
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(WAIT_SECONDS)
    with engine.connect() as conn:
        assert assert_agrees(conn, by_product) == 1


def test_the_loops_of_a_layer_tidy_the_log_once(layer: DataLayer) -> None:
    loops = layer.worker(["line_by_product"]).loops

    assert [type(loop) for loop in loops if not isinstance(loop, CollectLoop)] == [IndexLoop]
    assert sum(isinstance(loop, CollectLoop) for loop in loops) == 1
    assert not [
        loop for loop in layer.worker(["customer_by_email"]).loops if isinstance(loop, IndexLoop)
    ]
    with pytest.raises(ConfigurationError):
        layer.worker(["nobody"])
