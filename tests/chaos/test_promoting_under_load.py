"""A read model is promoted to and fro while processes append, run, read, and are killed."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from datapatterns.cqrs import Projections
from datapatterns.errors import (
    CommitUnansweredError,
    LeaseHeldError,
    LeaseLostError,
    ReadModelBehindError,
)
from datapatterns.event_sourcing import ANY, EventStore, StreamId
from tests.fixtures.effort import THOROUGH
from tests.fixtures.read_models import DoubledSales, ItemScanned, SalesByProduct, create_tables

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

STORE = EventStore()
EXPECTED = (LeaseHeldError, LeaseLostError, ReadModelBehindError, CommitUnansweredError)
PROMOTIONS = 20 if THOROUGH else 3
SPAWN = multiprocessing.get_context("spawn")
TOTAL = text("SELECT coalesce(sum(quantity), 0), coalesce(sum(quantity % 2), 0) FROM product_sales")


def projections() -> Projections:
    return Projections(STORE, lease_seconds=0.5)


def write(url: str, stop: Event, _wrong: "Queue[str]") -> None:
    draw = random.Random(os.getpid())  # noqa: S311 -- no secret
    engine = create_engine(url)
    while not stop.is_set():
        with engine.connect() as conn:
            begun = conn.begin()
            scanned = [ItemScanned(f"p{draw.randrange(30)}", 1)] * draw.randrange(1, 4)
            STORE.append(conn, StreamId("basket", str(os.getpid())), scanned, expected_version=ANY)
            begun.rollback() if draw.random() < 0.1 else begun.commit()


def work(url: str, stop: Event, wrong: "Queue[str]") -> None:
    engine = create_engine(url)
    while not stop.is_set():
        for projection in (SalesByProduct, DoubledSales):
            try:
                projections().catch_up(engine, projection, timeout_seconds=0.2, page_events=50)
            except EXPECTED:
                pass
            except Exception as error:  # noqa: BLE001 -- told to the test
                wrong.put(f"runner: {error!r}")


def read(url: str, stop: Event, wrong: "Queue[str]") -> None:
    """What readers see grows with the log, up to the factor 2 of the new version."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    seen = 0
    with engine.connect() as conn:
        while not stop.is_set():
            try:
                total, _ = conn.execute(TOTAL).one()
            except Exception as error:  # noqa: BLE001 -- told to the test
                wrong.put(f"reader: {error!r}")
                continue
            if 2 * total < seen:
                wrong.put(f"reader: {seen} were sold, then {total}")
            if not total:
                wrong.put("reader: nothing was sold")
            seen = max(seen, total // 2)


def test_readers_see_no_error_no_empty_table_and_no_step_back(
    engine: Engine, database_url: URL
) -> None:
    create_tables(engine)
    with engine.begin() as conn:
        first = [ItemScanned("p1", 1)]
        STORE.append(conn, StreamId("basket", "0"), first, expected_version=ANY)
    ours = projections()
    ours.catch_up(engine, SalesByProduct)
    url = database_url.render_as_string(hide_password=False)
    stop, wrong = SPAWN.Event(), SPAWN.Queue()

    def start(target: Callable[[str, Event, "Queue[str]"], None]) -> SpawnProcess:
        process = SPAWN.Process(target=target, args=(url, stop, wrong), daemon=True)
        process.start()
        return process

    crew = [start(target) for target in (write, write, read, read)]
    workers = [start(work), start(work)]
    ours.rebuild(engine, DoubledSales, promote=False)
    for number in range(PROMOTIONS):
        target = (DoubledSales, SalesByProduct)[number % 2]
        _patiently(partial(ours.promote, engine, target, timeout_seconds=60))
        victim = workers.pop(0)  # in the middle of a page, or wherever it is
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        workers.append(start(work))
    stop.set()
    for process in (*crew, *workers):
        process.join(timeout=60)

    assert wrong.empty(), wrong.get()
    for projection in (SalesByProduct, DoubledSales):
        ours.catch_up(engine, projection)
        assert ours.verify(engine, projection).matches


def _patiently(promote: Callable[[], object], *, deadline_seconds: float = 120) -> None:
    deadline = time.monotonic() + deadline_seconds
    while True:
        try:
            promote()
        except EXPECTED:
            if time.monotonic() >= deadline:
                raise
        else:
            return
