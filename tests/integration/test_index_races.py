"""Two transactions at once, in the order that hurts."""

import random
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError

from datapatterns.errors import IndexKeyTakenError
from datapatterns.index_table import BackfillProgress, IndexTable
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.index_tables import (
    assert_agrees,
    backfill,
    build,
    customer,
    order_line,
    run,
    tables,
)

pytestmark = pytest.mark.postgres

by_product = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note]
)
by_email = IndexTable("customer_by_email", on=[customer.c.email], unique=True)
WAIT_SECONDS = 30


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=4) as pool:
        yield pool


@pytest.fixture(autouse=True)
def rows_from_before(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line SELECT g, g, 'n' || g FROM generate_series(1, 20) g")


@pytest.fixture
def building(engine: Engine) -> IndexTable:
    with engine.begin() as conn:
        by_product.create(conn)
    return by_product


def execute(engine: Engine, sql: str) -> None:
    with engine.begin() as conn:
        run(conn, sql)


def chunk(engine: Engine, limit: int = 100) -> BackfillProgress:
    with engine.begin() as conn:
        return by_product.backfill(conn, limit=limit)


def finish(engine: Engine) -> None:
    backfill(engine, by_product)
    with engine.begin() as conn:
        assert by_product.activate(conn).clean


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM order_line WHERE id = 5",
        "UPDATE order_line SET product_id = 500 WHERE id = 5",
        "UPDATE order_line SET id = 500 WHERE id = 5",
        "UPDATE order_line SET note = 'later' WHERE id = 5",
        "UPDATE order_line SET product_id = NULL WHERE id = 5",
    ],
)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_chunk_ends_before_a_row_in_flight_and_the_next_waits_for_it(
    engine: Engine, building: IndexTable, pool: ThreadPoolExecutor, change: str, end: str
) -> None:
    with engine.connect() as writer:
        run(writer, change)
        assert chunk(engine) == BackfillProgress(rows_done=4, done=False)

        waiting = pool.submit(chunk, engine)
        until_blocked_by(engine, writer)
        getattr(writer, end)()

        assert waiting.result(WAIT_SECONDS).rows_done > 4
    finish(engine)
    with engine.connect() as conn:
        assert_agrees(conn, building)


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM order_line WHERE id = 5",
        "UPDATE order_line SET product_id = 500 WHERE id = 5",
    ],
)
def test_a_writer_waits_for_a_chunk_and_then_sees_its_index_rows(
    engine: Engine, building: IndexTable, pool: ThreadPoolExecutor, change: str
) -> None:
    with engine.connect() as builder:
        building.backfill(builder)
        writing = pool.submit(execute, engine, change)
        until_blocked_by(engine, builder)
        builder.commit()
        writing.result(WAIT_SECONDS)

    with engine.begin() as conn:
        assert building.activate(conn).clean


def test_a_writer_that_comes_back_to_a_chunks_row_does_not_deadlock(
    engine: Engine, building: IndexTable, pool: ThreadPoolExecutor
) -> None:
    def come_back(writer: Connection) -> None:
        run(writer, "UPDATE order_line SET product_id = 0 WHERE id = 1")
        writer.commit()

    with engine.connect() as writer, engine.connect() as builder:
        run(writer, "UPDATE order_line SET product_id = 0 WHERE id = 10")
        assert building.backfill(builder).rows_done == 9
        coming_back = pool.submit(come_back, writer)
        until_blocked_by(engine, builder)
        builder.commit()
        coming_back.result(WAIT_SECONDS)

    finish(engine)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_writer_whose_snapshot_does_not_show_an_index_row_must_retry(
    engine: Engine, level: str
) -> None:
    with engine.begin() as conn:
        by_product.create(conn)
    with engine.connect().execution_options(isolation_level=level) as writer:
        run(writer, "SELECT 1 FROM order_line")
        chunk(engine)

        with pytest.raises(OperationalError) as refused:
            run(writer, "DELETE FROM order_line WHERE id = 5")
        assert getattr(refused.value.orig, "sqlstate", None) == "40001"
        writer.rollback()
        run(writer, "DELETE FROM order_line WHERE id = 5")
        writer.commit()

    finish(engine)


def test_creating_waits_for_writers_that_would_not_fire_the_triggers(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    def create() -> bool:
        with engine.begin() as conn:
            return by_product.create(conn)

    with engine.connect() as writer:
        run(writer, "INSERT INTO order_line VALUES (0, 0, 'from before the triggers')")
        creating = pool.submit(create)
        until_blocked_by(engine, writer)
        writer.commit()

    assert creating.result(WAIT_SECONDS)
    finish(engine)
    with engine.connect() as conn:
        assert by_product.lookup(conn, 0)[0].note == "from before the triggers"


def test_of_two_processes_that_create_one_index_one_does(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    def create() -> bool:
        with engine.begin() as conn:
            return by_product.create(conn)

    with engine.connect() as first:
        assert by_product.create(first)
        second = pool.submit(create)
        until_blocked_by(engine, first)
        first.commit()

    assert not second.result(WAIT_SECONDS)


def test_two_processes_that_build_one_index_take_turns(
    engine: Engine, building: IndexTable, pool: ThreadPoolExecutor
) -> None:
    other_process = create_engine(engine.url)
    with engine.connect() as first:
        assert building.backfill(first, limit=8).rows_done == 8
        second = pool.submit(chunk, other_process, 8)
        until_blocked_by(engine, first)
        first.commit()

    assert second.result(WAIT_SECONDS).rows_done == 16
    other_process.dispose()
    finish(engine)


def test_a_builder_that_dies_loses_one_chunk_at_most(engine: Engine, building: IndexTable) -> None:
    chunk(engine, 8)
    builder = engine.connect()
    assert building.backfill(builder, limit=8).rows_done == 16
    pid = builder.scalar(text("SELECT pg_backend_pid()"))

    with engine.begin() as conn:
        conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    with pytest.raises(DBAPIError):
        run(builder, "SELECT 1")
    builder.close()

    assert chunk(engine, 8).rows_done == 16
    finish(engine)


@pytest.mark.parametrize(
    "read",
    [
        lambda conn: by_product.lookup(conn, 5),
        lambda conn: by_product.lookup(conn, 5, miss="scan"),
        lambda conn: by_product.lookup_many(conn, [5])[5],
        lambda conn: by_product.lookup_range(conn, 5),
        lambda conn: by_product.keys(conn, 5),
    ],
)
def test_a_miss_before_an_index_became_ready_is_not_trusted_after(
    engine: Engine, building: IndexTable, read: Callable[[Connection], Sized]
) -> None:
    backfill(engine, building)
    reader = create_engine(engine.url)

    @event.listens_for(reader, "after_cursor_execute", once=True)
    def activate(*_: object) -> None:
        with engine.begin() as conn:
            building.activate(conn)

    with reader.connect() as conn:
        assert len(read(conn)) == 1
    reader.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_unique_key_in_flight_makes_the_next_writer_wait(
    engine: Engine, pool: ThreadPoolExecutor, end: str
) -> None:
    build(engine, by_email)

    def take() -> str:
        try:
            with engine.begin() as conn, by_email.key_conflicts():
                run(conn, "INSERT INTO customer VALUES (2, 2, 'bob', 'second')")
        except IndexKeyTakenError:
            return "refused"
        return "taken"

    with engine.connect() as first:
        run(first, "INSERT INTO customer VALUES (1, 1, 'bob', 'first')")
        second = pool.submit(take)
        until_blocked_by(engine, first)
        getattr(first, end)()

    assert second.result(WAIT_SECONDS) == {"commit": "refused", "rollback": "taken"}[end]
    with engine.connect() as conn:
        assert assert_agrees(conn, by_email) == 1


def test_repair_waits_for_writers_in_flight(engine: Engine, pool: ThreadPoolExecutor) -> None:
    build(engine, by_product)
    execute(engine, "DELETE FROM datapatterns.line_by_product WHERE product_id < 10")

    def repair() -> bool:
        with engine.begin() as conn:
            return by_product.repair(conn).clean

    with engine.connect() as writer:
        run(writer, "UPDATE order_line SET product_id = 5 WHERE id = 3")
        repairing = pool.submit(repair)
        until_blocked_by(engine, writer)
        writer.commit()

    assert repairing.result(WAIT_SECONDS)
    with engine.connect() as conn:
        assert [row.id for row in by_product.lookup(conn, 5)] == [3, 5]


def test_an_index_is_right_however_many_write_while_it_is_built(
    engine: Engine, pool: ThreadPoolExecutor
) -> None:
    execute(engine, "INSERT INTO order_line SELECT g, g % 9 FROM generate_series(21, 600) g")

    def write(seed: int) -> int:
        chosen = random.Random(seed)  # noqa: S311 -- a repeatable choice
        retried = 0
        for number in range(120):
            statement = chosen.choice(
                [
                    "UPDATE order_line SET product_id = :p WHERE id = :i",
                    "UPDATE order_line SET product_id = :p WHERE id BETWEEN :i AND :i + 3",
                    "UPDATE order_line SET note = 'x' || :p WHERE id = :i",
                    "DELETE FROM order_line WHERE id = :i",
                    (
                        "INSERT INTO order_line VALUES (:i, :p) ON CONFLICT (id)"
                        " DO UPDATE SET product_id = excluded.product_id"
                    ),
                ]
            )
            level = "REPEATABLE READ" if number % 3 == 0 else "READ COMMITTED"
            with engine.connect().execution_options(isolation_level=level) as conn:
                try:
                    run(conn, "SELECT 1")
                    run(conn, statement, i=chosen.randrange(1, 600), p=chosen.randrange(9))
                except OperationalError as error:
                    if getattr(error.orig, "sqlstate", None) not in {"40001", "40P01"}:
                        raise
                    retried += 1
                    continue
                if number % 5 == 0:
                    conn.rollback()
                else:
                    conn.commit()
        return retried

    with engine.begin() as conn:
        by_product.create(conn)
    writers: list[Future[int]] = [pool.submit(write, seed) for seed in range(3)]
    backfill(engine, by_product, limit=25)
    for writer in writers:
        writer.result(WAIT_SECONDS)

    with engine.begin() as conn:
        assert by_product.activate(conn).clean
