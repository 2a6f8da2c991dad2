"""Everything that a layer derives, through PgBouncer in transaction mode."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from redis import Redis
from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns import DataLayer
from datapatterns.event_sourcing import Position
from datapatterns.overview import Concern, Verdict
from datapatterns.sql.poolers import is_pooled
from tests.fixtures.caches import create_products, load_product, rename
from tests.fixtures.declared_everything import BY_EMAIL, opened
from tests.fixtures.poolers import Pool
from tests.fixtures.read_models import (
    ItemScanned,
    SalesByProduct,
    append_all,
    expected_sales,
    sales,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def layer(pool: Pool, whole: DataLayer, database_url: URL, redis_url: str) -> Iterator[DataLayer]:
    """The same application, reached through a pooler; all is filled already."""
    assert whole.status()
    [url] = pool([database_url])
    with closing(opened(url, redis_url)) as layer:
        yield layer


def test_views_read_models_and_indexes_follow_their_writers(layer: DataLayer) -> None:
    engine = layer.engine
    scans: list[tuple[object, str]] = [(ItemScanned("milk", 99), "1")]
    for n in range(30):
        events = [ItemScanned("tea", n), ItemScanned("milk", 1)]
        append_all(engine, layer.events, events, basket=str(n))
        scans += [(event, str(n)) for event in events]
        with engine.begin() as conn:
            conn.execute(text("INSERT INTO line VALUES (:n, 1, 1, 149, 1)"), {"n": n})
            conn.execute(
                text("INSERT INTO customer VALUES (1, :n, :email, 'A', 0)"),
                {"n": n, "email": f"c{n}@x"},
            )
        layer.views.refresh(engine)
        layer.projections.catch_up(engine, SalesByProduct)
        with engine.connect() as conn:
            [found] = BY_EMAIL.lookup(conn, f"c{n}@x")
            assert found.id == n

    assert sales(engine) == expected_sales(scans)
    assert {one.concern for one in layer.status()} == {Concern.FINE}
    verdicts = {one.pattern: one.verdict for one in layer.verify()}
    assert verdicts["view"] is verdicts["index"] is Verdict.RIGHT


def end_of(layer: DataLayer) -> Position:
    with layer.engine.connect() as conn:
        return layer.events.high_water_mark(conn)


def test_a_worker_moves_all_on(layer: DataLayer) -> None:
    worker = layer.worker(threads=2, grace_seconds=5)
    append_all(layer.engine, layer.events, [ItemScanned("tea", 1)] * 20)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(worker.run)
        try:
            layer.wait(SalesByProduct, end_of(layer), timeout_seconds=60)
        finally:
            worker.stop()
        running.result()

    assert sales(layer.engine)["tea"][0] == 20


def test_what_is_cached_is_forgotten_at_its_commit(
    pool: Pool, database_url: URL, redis_url: str, redis_client: Redis
) -> None:
    [url] = pool([database_url])
    with (
        closing(DataLayer(url, redis_url=redis_url)) as layer,
        closing(layer.cache("product")) as cache,
    ):
        create_products(layer.engine)
        product = cache.cached(load_product)
        for n in range(12):
            with cache.writes() as conn:
                rename(conn, 1, f"name {n}")
                cache.invalidate_in(conn, 1)
            found = product(1)
            assert found is not None
            assert found.name == f"name {n}"
        assert cache.stats().loads == 12
        assert redis_client.dbsize()


def ask_in_threads(engine: Engine) -> list[int]:
    def ask(n: int) -> int:
        with engine.begin() as conn:  # at a ROLLBACK the driver forgets what it has prepared
            return int(conn.execute(text("SELECT CAST(:n AS int) + 1"), {"n": n}).scalar_one())

    with ThreadPoolExecutor(6) as threads:
        return list(threads.map(ask, range(200)))


def test_nothing_is_prepared_that_another_session_would_miss(pool: Pool, database_url: URL) -> None:
    [url] = pool([database_url])
    with closing(DataLayer(url)) as layer:
        assert ask_in_threads(layer.engine) == list(range(1, 201))


def test_without_that_sessions_would_clash(pool: Pool, database_url: URL) -> None:
    """A negative control: one session is asked for what the driver has prepared in another."""
    [url] = pool([database_url])
    engine = create_engine(url)
    try:
        with pytest.raises(DBAPIError, match="prepared statement"):
            ask_in_threads(engine)
    finally:
        engine.dispose()


def test_a_server_is_known_from_a_pooler(engine: Engine, database_url: URL) -> None:
    with closing(DataLayer(database_url)) as layer, layer.engine.connect() as conn:
        assert not is_pooled(conn)
    with engine.connect() as conn:
        assert not is_pooled(conn)
