"""`datapatterns worker` in processes of its own: stopped, killed, and many at once."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.event_sourcing import EventStore
from datapatterns.testing import wait_until
from tests.fixtures.commands import Run, rows, start
from tests.fixtures.empty_database import shown
from tests.fixtures.read_models import ItemScanned, append_all, create_tables, sales

pytestmark = pytest.mark.postgres

STORE = EventStore()
MILK = ItemScanned("milk", 1)
SECONDS = 60.0

APP = """
from pathlib import Path
from time import sleep

from datapatterns import DataLayer
from datapatterns.cqrs import Projection, on
from tests.fixtures.read_models import ItemScanned, ProductSales

class Sales(Projection, into=ProductSales, version=1, name="sales_by_product"):
    @on(ItemScanned, key=lambda e, _: e.product)
    def _(self, row, e, meta):
        if e.product == "slow":
            Path("in_a_page").touch()
            while not Path("go_on").exists():
                sleep(0.01)
        row.quantity += 1
        row.cents += e.cents
        row.last_basket = meta.stream.key

layer = DataLayer({url!r}, projections=[Sales])
"""


@pytest.fixture
def shop(engine: Engine) -> Engine:
    create_tables(engine)
    return engine


@pytest.fixture
def app(database_url: URL, tmp_path: Path) -> Path:
    (tmp_path / "shop_app.py").write_text(APP.format(url=shown(database_url)))
    return tmp_path


@contextmanager
def worker(app: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = start("worker", "--app", "shop_app:layer", *arguments, cwd=app)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def milk(engine: Engine) -> int:
    return sales(engine).get("milk", (0, 0, None))[0]


def owners(engine: Engine) -> list[str | None]:
    with engine.begin() as conn:
        return list(conn.scalars(text("SELECT owner FROM datapatterns.projection_shard")))


def test_a_worker_runs_until_sigterm_and_says_what_it_has_done(shop: Engine, app: Path) -> None:
    append_all(shop, STORE, [MILK] * 3)

    with worker(app, "--json") as process:
        wait_until(lambda: milk(shop) == 3, deadline_seconds=SECONDS)
        append_all(shop, STORE, [MILK])
        wait_until(lambda: milk(shop) == 4, deadline_seconds=SECONDS)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)

    assert process.returncode == 0, err
    assert json.loads(out)["events"] == 4
    assert {json.loads(line)["message"] for line in err.splitlines()} >= {
        "worker begins",
        "worker ends",
    }
    assert owners(shop) == [None]


def test_sigterm_in_the_middle_of_a_page_lets_it_finish(shop: Engine, app: Path) -> None:
    append_all(shop, STORE, [MILK, ItemScanned("slow", 1)])

    with worker(app) as process:
        wait_until((app / "in_a_page").exists, deadline_seconds=SECONDS)
        process.send_signal(signal.SIGTERM)
        (app / "go_on").touch()
        _, err = process.communicate(timeout=SECONDS)

    assert process.returncode == 0, err
    assert sales(shop).keys() == {"milk", "slow"}
    assert owners(shop) == [None]


def test_a_page_that_does_not_finish_in_time_is_undone_and_the_lease_given_back(
    shop: Engine, app: Path
) -> None:
    append_all(shop, STORE, [MILK, ItemScanned("slow", 1)])

    with worker(app, "--grace-seconds", "0.1") as process:
        wait_until((app / "in_a_page").exists, deadline_seconds=SECONDS)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)

    assert process.returncode == 0, err
    assert "not finished in time" in err
    assert sales(shop) == {}
    assert owners(shop) == [None]


def test_a_second_signal_ends_a_worker_at_once(shop: Engine, app: Path) -> None:
    append_all(shop, STORE, [ItemScanned("slow", 1)])

    with worker(app, "--grace-seconds", "3600") as process:
        wait_until((app / "in_a_page").exists, deadline_seconds=SECONDS)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: owners_wait(shop), deadline_seconds=SECONDS)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)

    assert process.returncode == 128 + signal.SIGTERM
    assert sales(shop) == {}


def owners_wait(engine: Engine) -> bool:
    """Return whether no worker asks for a share any more."""
    with engine.begin() as conn:
        return not conn.scalars(text("SELECT 1 FROM datapatterns.projection_worker")).all()


def test_until_caught_up_ends_by_itself(
    run: Run, shop: Engine, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(app)
    monkeypatch.syspath_prepend(str(app))
    append_all(shop, STORE, [MILK] * 3)

    (done,) = rows(
        run("worker", "--app", "shop_app:layer", "--until-caught-up", "--json", "--threads", "1")
    )
    (once,) = rows(run("worker", "--app", "shop_app:layer", "--once", "--json"))

    assert (done["events"], once["events"]) == (3, 0)
    assert milk(shop) == 3
