"""`datapatterns cache`, and what `datapatterns worker` does for caches."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, text

from datapatterns.cache_aside import Cache
from datapatterns.testing import wait_until
from tests.fixtures.caches import Product, create_products, load_product, open_cache, rename
from tests.fixtures.commands import Run, ended, rows, start
from tests.fixtures.empty_database import shown

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

APP = """
from datapatterns import DataLayer
from tests.fixtures.caches import load_product

layer = DataLayer({url!r}, redis_url={redis!r})
products, offers = layer.cache("product"), layer.cache("offer")
product = products.cached(load_product)
"""


@pytest.fixture
def app(
    engine: Engine,
    database_url: URL,
    redis_url: str,
    redis_client: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, str]:
    assert redis_client.dbsize() == 0
    create_products(engine)
    name = f"caches_app_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APP.format(url=shown(database_url), redis=redis_url))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "--app", f"{name}:layer"


@pytest.fixture
def cache(engine: Engine, redis_url: str, app: tuple[str, str]) -> Iterator[Cache]:
    """What another process has cached."""
    assert app
    with open_cache(redis_url, engine) as cache:
        cache.cached(load_product).get_many([1, 2, 99])
        yield cache


def test_stats_tell_what_waits_and_what_is_kept(
    run: Run, app: tuple[str, str], cache: Cache, engine: Engine
) -> None:
    with engine.begin() as conn:
        cache.invalidate_in(conn, 1)

    [told] = rows(run("cache", "stats", *app, "--json"))

    assert told["serves_hits"] is True
    assert told["values"] == {"product": 3}
    assert told["waiting_rows"] == 1
    assert told["waiting_seconds"] >= 0
    ran = run("cache", "stats", *app)
    assert "product" in ran.out
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.usefixtures("app")
def test_stats_of_a_cache_that_nobody_has_used(run: Run, app: tuple[str, str]) -> None:
    [told] = rows(run("cache", "stats", *app, "--json"))

    assert (told["serves_hits"], told["last_round_seconds_ago"]) == (None, None)


def test_an_audit_exits_with_5_for_what_is_wrong(
    run: Run, app: tuple[str, str], cache: Cache, engine: Engine
) -> None:
    [right] = rows(run("cache", "audit", *app, "--json"))
    assert (right["checked"], right["violations"]) == (3, 0)
    with engine.begin() as conn:
        rename(conn, 2, "second")

    ran = run("cache", "audit", "product", *app, "--json", "--show-values")

    assert ran.code == 5
    [told] = [json.loads(line) for line in ran.out.splitlines()]
    assert [(each["key"], each["cached"], each["loaded"]) for each in told["wrong"]] == [
        (2, str(Product(2, "first")), str(Product(2, "second")))
    ]
    assert "--repair" in run("cache", "audit", *app).err
    assert run("cache", "audit", *app, "--repair").code == 5
    assert run("cache", "audit", *app).code == 0
    assert cache.stats().loads == 3


@pytest.mark.usefixtures("cache")
def test_an_audit_shows_no_values_unless_it_is_told_to(
    run: Run, app: tuple[str, str], engine: Engine
) -> None:
    with engine.begin() as conn:
        rename(conn, 2, "secret")

    ran = run("cache", "audit", *app)

    assert ran.code == 5
    assert "secret" not in ran.out + ran.err


def test_a_cache_that_is_not_declared_is_not_audited(run: Run, app: tuple[str, str]) -> None:
    ran = run("cache", "audit", "prices", *app)

    assert ran.code == 2
    assert "offer, product" in ran.err


def test_entries_are_forgotten_by_key(run: Run, app: tuple[str, str], cache: Cache) -> None:
    product = cache.cached(load_product)

    assert rows(run("cache", "invalidate", "product", "1", "--dry-run", *app, "--json")) == [
        {"kind": "entry", "name": "product 1", "forgotten": False}
    ]
    product(1)
    assert cache.stats().loads == 3
    assert run("cache", "invalidate", "product", "1", '"1"', *app).code == 0
    product(1)
    product(2)
    assert cache.stats().loads == 4


def test_what_depends_on_tags_is_forgotten(run: Run, app: tuple[str, str], cache: Cache) -> None:
    def read() -> int:
        return cache.get_or_load("n", lambda _: 1, tags=["hourly"])

    read()
    loads = cache.stats().loads
    assert run("cache", "invalidate", "--tag", "hourly", *app).code == 0
    read()

    assert cache.stats().loads == loads + 1


@pytest.mark.parametrize(
    "wrong", [(), ("product",), ("product", "uuid:5"), ("product", "1.5"), ("--tag", "*")]
)
def test_what_cannot_be_forgotten_is_refused(
    wrong: tuple[str, ...], run: Run, app: tuple[str, str]
) -> None:
    assert run("cache", "invalidate", *wrong, *app).code == 2


def test_a_round_is_sent_or_told_of(
    run: Run, app: tuple[str, str], cache: Cache, engine: Engine
) -> None:
    product = cache.cached(load_product)
    with engine.begin() as conn:
        rename(conn, 1, "second")
        product.invalidate_in(conn, 1)

    [waiting] = rows(run("cache", "relay", "--dry-run", *app, "--json"))
    assert waiting["waiting_rows"] == 1
    assert product(1) == Product(1, "first")
    [sent] = rows(run("cache", "relay", *app, "--json"))
    assert sent == {"leading": True, "transactions": 1, "entries": 1, "forgot_everything": False}
    assert product(1) == Product(1, "second")


def test_a_worker_relays_until_sigterm(
    app: tuple[str, str], cache: Cache, engine: Engine, tmp_path: Path
) -> None:
    product = cache.cached(load_product)
    worker = start("worker", *app, cwd=tmp_path)
    try:
        with engine.begin() as conn:
            rename(conn, 1, "second")
            product.invalidate_in(conn, 1)
        wait_until(lambda: product(1) == Product(1, "second"))
        rows_left = text("SELECT count(*) FROM datapatterns.cache_outbox")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            wait_until(lambda: conn.scalar(rows_left) == 0)
    finally:
        worker.send_signal(signal.SIGTERM)
    ran = ended(worker)

    assert ran.code == 0, ran


def test_a_worker_that_ends_by_itself_has_relayed(
    run: Run, app: tuple[str, str], cache: Cache, engine: Engine
) -> None:
    product = cache.cached(load_product)
    with engine.begin() as conn:
        rename(conn, 1, "second")
        product.invalidate_in(conn, 1)

    assert run("worker", "--once", *app).code == 0
    assert product(1) == Product(1, "second")
