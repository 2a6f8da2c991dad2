"""Writers, refreshers, collectors and checkers all at once: no change is lost or applied twice."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from datapatterns.change_log import ChangeLog
from datapatterns.errors import SnapshotOutdatedError
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.view_tables import (
    create,
    create_tables,
    differences,
    largest_lines,
    refresh,
    verify,
    weekly_sales,
)

WRITERS, TRANSACTIONS = 3, 60
PACE_SECONDS = 0.05
WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
LATE = MaterializedView("weekly_sales_late", weekly_sales())
STATEMENTS = [
    (
        "INSERT INTO line SELECT g, NULLIF(g % 3, 0), :n, :n, 1"
        " FROM generate_series(:id, :id + 3) g"
        " ON CONFLICT (id) DO UPDATE SET product_id = excluded.product_id"
    ),
    "UPDATE line SET cents = cents + 1, week = NULLIF(:n % 3, 0) WHERE id BETWEEN :id AND :id + 5",
    "DELETE FROM line WHERE id BETWEEN :id AND :id + 2",
    (
        "INSERT INTO product VALUES (:n, NULLIF('d' || :id % 3, 'd0'))"
        " ON CONFLICT (id) DO UPDATE SET department = excluded.department"
    ),
    "DELETE FROM product WHERE id = :n",
]


def write(engine: Engine, seed: int) -> int:
    """Run transactions that overlap those of others; return how many were committed."""
    chance, committed = random.Random(seed), 0  # noqa: S311 -- reproducible, not secret
    for _ in range(TRANSACTIONS):
        with engine.connect() as conn:
            try:
                for _ in range(chance.randint(1, 4)):
                    change(conn, chance)
                if chance.random() < 0.2:
                    conn.rollback()
                else:
                    conn.commit()
                    committed += 1
            except OperationalError:  # a deadlock; nothing of it was committed
                conn.rollback()
    return committed


def change(conn: Connection, chance: random.Random) -> None:
    values = {"id": chance.randint(1, 60), "n": chance.randint(1, 9)}
    if chance.random() < 0.02:
        conn.execute(text("TRUNCATE line"))
    if chance.random() < 0.2:
        with conn.begin_nested() as savepoint:
            conn.execute(text("DELETE FROM line WHERE id > :id"), values)
            savepoint.rollback()
    conn.execute(text(chance.choice(STATEMENTS)), values)


def check(engine: Engine) -> None:
    assert verify(engine, WEEKLY) == []


def collect(engine: Engine) -> None:
    with engine.begin() as conn:
        ChangeLog().collect_garbage(conn)


def repeat(engine: Engine, done: threading.Event, step: Callable[[Engine], None]) -> int:
    """Take the step again and again; return how often it worked."""
    worked = 0
    while not done.is_set():
        try:
            step(engine)
            worked += 1
        except SnapshotOutdatedError:
            pass  # a TRUNCATE or a refresh came between the snapshot and the lock
        except OperationalError as error:
            if not isinstance(error.orig, DeadlockDetected):
                raise
        done.wait(PACE_SECONDS)
    return worked


@pytest.mark.chaos
def test_views_are_exact_under_load(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, WEEKLY, LARGEST)
    done = threading.Event()
    steps: list[Callable[[Engine], None]] = [
        partial(refresh, view=WEEKLY),
        partial(refresh, view=WEEKLY),
        partial(refresh, view=LARGEST),
        check,
        collect,
    ]

    with ThreadPoolExecutor(max_workers=len(steps) + WRITERS) as pool:
        loops = [pool.submit(repeat, engine, done, step) for step in steps]
        try:
            writers = [pool.submit(write, engine, seed) for seed in range(WRITERS)]
            create(engine, LATE)
            committed = [writer.result() for writer in writers]
        finally:
            done.set()
        worked = [loop.result() for loop in loops]
    for view in (WEEKLY, LARGEST, LATE):
        refresh(engine, view)

    assert all(committed)
    assert all(worked)
    assert differences(engine, WEEKLY, weekly_sales()) == 0
    assert differences(engine, LARGEST, largest_lines()) == 0
    assert differences(engine, LATE, weekly_sales()) == 0
