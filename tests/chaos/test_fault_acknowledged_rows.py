"""Whatever breaks under a running workload: what was acknowledged is there, once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import pytest
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.embedded import EmbeddedServers
from datapatterns.testing import FaultProxy, PostgresFaults, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

ENOUGH_SECONDS = 60
WRITERS = 4


class Workload:
    """Writers who each put rows of their own into a table, through a network that breaks."""

    def __init__(self, engine: Engine) -> None:
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self._engine = engine
        self._numbers = count()
        self._stopped = threading.Event()

    def write(self) -> None:
        while not self._stopped.is_set():
            number = next(self._numbers)
            try:
                with self._engine.begin() as conn:
                    conn.execute(text("INSERT INTO note VALUES (:number)"), {"number": number})
            except DBAPIError:
                self.unknown.append(number)
            else:
                self.acknowledged.append(number)

    def go_on(self) -> None:
        """Return when some more rows are acknowledged."""
        before = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) >= before + 20, deadline_seconds=ENOUGH_SECONDS)

    def stop(self) -> None:
        self._stopped.set()


@contextmanager
def connected(url: URL, **options: str) -> Iterator[Engine]:
    engine = create_engine(url, connect_args=options)
    yield engine
    engine.dispose()


@contextmanager
def working(engine: Engine) -> Iterator[Workload]:
    """Writers who work during the block, on a table that is theirs."""
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE note (number int)"))
    work = Workload(engine)
    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(work.write) for _ in range(WRITERS)]
        try:
            yield work
        finally:
            work.stop()
        for writer in writing:
            writer.result(ENOUGH_SECONDS)


def numbers(engine: Engine) -> list[int]:
    with engine.connect() as conn:
        return list(conn.scalars(text("SELECT number FROM note")))


@pytest.fixture
def proxy(datapatterns_postgres_faults: PostgresFaults) -> Iterator[FaultProxy[URL]]:
    with FaultProxy(datapatterns_postgres_faults.url) as proxy:
        yield proxy


def test_no_acknowledged_row_is_lost_and_none_is_there_twice(
    datapatterns_postgres_faults: PostgresFaults, proxy: FaultProxy[URL]
) -> None:
    faults = datapatterns_postgres_faults

    def lose_connections_in_a_black_hole() -> None:
        proxy.blackhole()
        proxy.cut()
        proxy.pass_through()

    breakages: list[Callable[[], object]] = [
        lambda: proxy.cut_next_reply_to("COMMIT").wait(),
        lambda: proxy.cut_before_request("COMMIT").wait(),
        proxy.cut,
        lose_connections_in_a_black_hole,
        lambda: faults.kill_connections(application_name="shop"),
        lambda: faults.crash_backend(faults.connections(application_name="shop")[0]),
        faults.crash_and_restart,
        faults.restart,
    ]
    with connected(proxy.url, application_name="shop") as shop, working(shop) as work:
        for breakage in breakages:
            work.go_on()
            breakage()
        work.go_on()

    with connected(faults.url) as engine:
        there = numbers(engine)
    assert len(there) == len(set(there))
    assert set(there) >= set(work.acknowledged)
    applied = set(there) & set(work.unknown)
    # The answer to one COMMIT was cut, and one COMMIT itself.
    assert applied
    assert set(work.unknown) - applied
    assert set(there) == set(work.acknowledged) | applied


def test_without_synchronous_commit_the_same_workload_loses_acknowledged_rows() -> None:
    """The negative control: the workload and its crash do find lost rows."""
    settings = {"synchronous_commit": "off", "wal_writer_delay": "10s", "autovacuum": "off"}
    with (
        EmbeddedServers(durable=False) as servers,
        PostgresFaults(servers.postgres(settings=settings)) as faults,
        connected(faults.url) as engine,
    ):
        with working(engine) as work:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.execute(text("CHECKPOINT"))  # the table is safe; rows from now on are not
            work.go_on()
            acknowledged = set(work.acknowledged)
            faults.crash_and_restart()
            work.go_on()
        there = set(numbers(engine))

    assert acknowledged - there
