"""Read models under torture: workers killed and paused, segments split, Redis emptied, and more.

In the end each read model is what a fold of the log gives, and each effect was made once. The
everyday size takes seconds; ``make torture`` goes on for longer, and kills the server as well.
"""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from random import Random

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns import DataLayer, DataPatternsError
from datapatterns.embedded import EmbeddedServers, PostgresServer
from datapatterns.migrations import Migrations
from datapatterns.testing import PostgresFaults, wait_until
from tests.fixtures.effort import THOROUGH
from tests.torture.read_models import (
    PROJECTIONS,
    Base,
    Board,
    Rests,
    Sales,
    best_sellers,
    declare,
    expected,
    sell,
    stored,
    work,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]

WRITERS, WORKERS = 3, 3
EVENTS_OF_EACH = 10_000 if THOROUGH else 400
DISASTERS = 60 if THOROUGH else 8
ENOUGH_SECONDS = 600.0 if THOROUGH else 90.0
SEED = 20_261_130
PRODUCTS_MAX = 1_000

OWNERS = text("SELECT DISTINCT owner FROM datapatterns.projection_shard WHERE owner LIKE :like")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with EmbeddedServers() as servers:
        yield servers.postgres()


@pytest.fixture
def layer(server: PostgresServer, redis_url: str, redis_client: Redis) -> Iterator[DataLayer]:
    redis_client.flushdb()
    Migrations({"main": server.url}).upgrade()
    with declare(_text(server.url), redis_url) as layer:
        Base.metadata.create_all(layer.engine)
        yield layer


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@dataclass(slots=True)
class Staff:
    """Worker processes that come and go."""

    url: str
    redis_url: str
    workers: list[BaseProcess] = field(default_factory=list)
    ready: list[Event] = field(default_factory=list)

    def hire(self) -> None:
        context = get_context("spawn")
        ready = context.Event()
        process = context.Process(target=work, args=(self.url, self.redis_url, ready), daemon=True)
        process.start()
        self.workers.append(process)
        self.ready.append(ready)

    def kill_one(self) -> None:
        """As if its machine were gone; another one starts."""
        gone = self.workers.pop(0)
        self.ready.pop(0)
        gone.kill()
        gone.join()
        self.hire()

    @contextmanager
    def one_paused(self) -> Iterator[int]:
        """Let one stand still, wherever it is; give its number."""
        paused = self.workers[0]
        assert paused.pid
        os.kill(paused.pid, signal.SIGSTOP)
        try:
            yield paused.pid
        finally:
            os.kill(paused.pid, signal.SIGCONT)
            self.workers.append(self.workers.pop(0))
            self.ready.append(self.ready.pop(0))

    def dismiss(self) -> list[int | None]:
        """Tell all to stop; return how they ended."""
        assert all(ready.wait(60) for ready in self.ready)
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join(30)
        return [worker.exitcode for worker in self.workers]

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()


@dataclass(frozen=True, slots=True)
class Disasters:
    """What can happen, and keeps a wrong design from being right by luck."""

    layer: DataLayer
    staff: Staff
    random: Random

    def kill_a_worker(self) -> None:
        self.staff.kill_one()

    def pause_a_worker_beyond_its_lease(self) -> None:
        with self.staff.one_paused() as pid:
            # Others have taken over what it held; then it goes on, and does not know.
            wait_until(partial(self._others_have_all, pid), deadline_seconds=30)

    def split_or_merge(self) -> None:
        projections, engine = self.layer.projections, self.layer.engine
        projection = self.random.choice([Sales, Rests])
        count = self.random.choice([1, 2, 4, 8])
        # A merge that waits for segments in vain says so; then there are as many as before.
        with suppress(DataPatternsError, DBAPIError):
            projections.split_into(engine, projection, count)

    def empty_redis(self) -> None:
        self.layer.redis.flushdb()

    def end_all_connections(self) -> None:
        with PostgresFaults(self.layer.engine.url) as faults:
            faults.kill_connections()

    def _others_have_all(self, pid: int) -> bool:
        with self.layer.engine.connect() as conn:
            return not conn.execute(OWNERS, {"like": f"%:{pid}:%"}).all()


def everyday(disasters: Disasters) -> list[Callable[[], None]]:
    return [
        disasters.kill_a_worker,
        disasters.pause_a_worker_beyond_its_lease,
        disasters.split_or_merge,
        disasters.empty_redis,
        disasters.end_all_connections,
    ]


def test_each_read_model_is_the_fold_of_the_log_whatever_happens(
    layer: DataLayer, server: PostgresServer, redis_url: str
) -> None:
    url = _text(server.url)
    staff = Staff(url, redis_url)
    random = Random(SEED)  # noqa: S311 -- not for secrets
    _register(layer)
    for _ in range(WORKERS):
        staff.hire()
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            writing = [pool.submit(sell, url, seed, EVENTS_OF_EACH) for seed in range(WRITERS)]
            happening = everyday(Disasters(layer, staff, random))
            if THOROUGH:
                happening.append(partial(_crash, server))
            _let_happen(layer, happening, writing, random)
            written = sum(each.result() for each in writing)
        wait_until(partial(_all_caught_up, layer), deadline_seconds=ENOUGH_SECONDS)
        exits = staff.dismiss()
    finally:
        staff.end()

    with layer.engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM datapatterns.event").scalar() == written
    should = expected(layer)
    assert stored(layer) == should
    board = layer.projections.view(Board)
    assert dict(board.top("best", PRODUCTS_MAX)) == best_sellers(should.sales)
    for projection in PROJECTIONS:
        assert layer.projections.verify(layer.engine, projection).matches
    assert exits == [0] * WORKERS


def _register(layer: DataLayer) -> None:
    # So that segments can be split before a worker has run.
    for projection in PROJECTIONS:
        layer.projections.run(layer.engine, projection)
    layer.projections.split_into(layer.engine, Sales, 4)
    layer.projections.split_into(layer.engine, Rests, 2)


def _let_happen(
    layer: DataLayer,
    happening: list[Callable[[], None]],
    writing: list[Future[int]],
    random: Random,
) -> None:
    total = WRITERS * EVENTS_OF_EACH
    order = happening + [random.choice(happening) for _ in range(DISASTERS - len(happening))]
    for number, happen in enumerate(order):
        # Spread over the writing, and each while there is work to do.
        due = total * number // len(order)
        wait_until(partial(_is_due, layer, due, writing), deadline_seconds=ENOUGH_SECONDS)
        happen()


def _is_due(layer: DataLayer, events: int, writing: list[Future[int]]) -> bool:
    return _events(layer) >= events or all(each.done() for each in writing)


def _events(layer: DataLayer) -> int:
    try:
        with layer.engine.connect() as conn:
            last = conn.exec_driver_sql(
                "SELECT coalesce(pg_sequence_last_value('datapatterns.event_position'), 0)"
            )
            return int(last.scalar_one())
    except DBAPIError:
        return 0  # its connection was ended; asked again


def _crash(server: PostgresServer) -> None:
    with PostgresFaults(server) as faults:
        faults.crash_and_restart()


def _all_caught_up(layer: DataLayer) -> bool:
    engine: Engine = layer.engine
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
        statuses = layer.projections.status(conn)
    return all(one.positions_behind == 0 for one in statuses) and len(statuses) == len(PROJECTIONS)
