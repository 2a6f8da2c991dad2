"""Workers in processes of their own are killed, paused and joined; each event counts once."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.cqrs import Projections
from datapatterns.event_sourcing import EventStore
from datapatterns.testing import wait_until
from tests.fixtures.commands import start
from tests.fixtures.empty_database import shown
from tests.fixtures.read_models import (
    ItemScanned,
    SalesByProduct,
    append_all,
    create_tables,
    expected_sales,
    sales,
)

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]

STORE = EventStore()
PROJECTIONS = Projections(STORE)
EVENTS = [ItemScanned(f"p{n}", n) for n in range(60)]
SECONDS = 60.0

APP = """
from datapatterns import DataLayer
from tests.fixtures.read_models import SalesByProduct

layer = DataLayer({url!r}, projections=[SalesByProduct])
"""


class Crew:
    """Workers that share one read model."""

    def __init__(self, app: Path) -> None:
        self._app = app
        self.processes: list[subprocess.Popen[str]] = []

    def join(self) -> subprocess.Popen[str]:
        process = start(
            *("worker", "--app", "shop_app:layer", "--lease-seconds", "1", "--page-events", "7"),
            cwd=self._app,
        )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()
        self.processes.remove(process)

    def end(self) -> list[int]:
        """Stop all that are left, and return how they ended."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.communicate(timeout=SECONDS)
        return [process.returncode for process in self.processes]


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    append_all(engine, STORE, EVENTS)
    PROJECTIONS.catch_up(engine, SalesByProduct)
    PROJECTIONS.split_into(engine, SalesByProduct, 8)
    return engine


@pytest.fixture
def crew(database_url: URL, tmp_path: Path) -> Iterator[Crew]:
    (tmp_path / "shop_app.py").write_text(APP.format(url=shown(database_url)))
    crew = Crew(tmp_path)
    try:
        yield crew
    finally:
        for process in crew.processes:
            process.kill()
            process.communicate()


def shares(engine: Engine) -> list[int]:
    with engine.begin() as conn:
        return list(
            conn.scalars(
                text(
                    "SELECT count(*) FROM datapatterns.projection_shard"
                    " WHERE lease_until > clock_timestamp() GROUP BY owner ORDER BY 1"
                )
            )
        )


def shows_all(engine: Engine, times: int) -> bool:
    return sales(engine) == expected_sales((event, "1") for event in EVENTS * times)


@contextmanager
def paused(process: subprocess.Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_workers_share_evenly_take_over_from_the_killed_and_fence_the_paused(
    shop: Engine, crew: Crew
) -> None:
    workers = [crew.join() for _ in range(3)]
    wait_until(lambda: shares(shop) == [2, 3, 3], deadline_seconds=SECONDS)
    appended = 1
    for times in (1, 2):
        append_all(shop, STORE, EVENTS)
        crew.kill(workers.pop(0))
        append_all(shop, STORE, EVENTS)
        wait_until(lambda: shows_all(shop, 2 * times + 1), deadline_seconds=SECONDS)  # noqa: B023
        workers.append(crew.join())
        appended += 2
    wait_until(lambda: shares(shop) == [2, 3, 3], deadline_seconds=SECONDS)

    with paused(workers[0]):
        append_all(shop, STORE, EVENTS)
        wait_until(lambda: shows_all(shop, appended + 1), deadline_seconds=SECONDS)
        PROJECTIONS.split_into(shop, SalesByProduct, 2)
    append_all(shop, STORE, EVENTS)
    wait_until(lambda: shows_all(shop, appended + 2), deadline_seconds=SECONDS)

    assert crew.end() == [0, 0, 0]
    assert PROJECTIONS.verify(shop, SalesByProduct).matches
    with shop.begin() as conn:
        known = conn.scalars(text("SELECT worker FROM datapatterns.projection_worker")).all()
    # Those that were killed are forgotten later.
    assert not {int(name.split(":")[1]) for name in known} & {one.pid for one in crew.processes}


def test_a_worker_that_is_killed_in_a_storm_of_pages_loses_and_doubles_nothing(
    shop: Engine, crew: Crew
) -> None:
    with ExitStack() as stack:
        times = 1
        for _ in range(4):
            victim = crew.join()
            stack.callback(victim.kill)
            for _ in range(5):
                append_all(shop, STORE, EVENTS)
                times += 1
            with shop.begin() as conn:
                before = conn.scalar(
                    text("SELECT max(position) FROM datapatterns.projection_shard")
                )

            def moves(before: int | None = before) -> bool:
                with shop.begin() as conn:
                    now = conn.scalar(
                        text("SELECT max(position) FROM datapatterns.projection_shard")
                    )
                return now is not None and (before is None or now > before)

            wait_until(moves, deadline_seconds=SECONDS)
            crew.kill(victim)
    crew.join()

    wait_until(lambda: shows_all(shop, times), deadline_seconds=SECONDS)
    assert crew.end() == [0]
    assert PROJECTIONS.verify(shop, SalesByProduct).matches
