"""Strict writers die behind their fences."""

import pytest
from redis import Redis
from sqlalchemy import Engine

from tests.fixtures import doomed_workers as workers
from tests.fixtures.caches import create_products, name_of, open_cache, until
from tests.fixtures.forked_workers import run_until_failpoint

pytestmark = [pytest.mark.postgres, pytest.mark.redis, pytest.mark.chaos]


@pytest.mark.parametrize(("failpoint", "visit"), workers.FENCING)
def test_whoever_reads_after_a_strict_writer_died_is_served_what_has_committed(
    engine: Engine, redis_client: Redis, redis_url: str, failpoint: str, visit: int
) -> None:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:

        def read() -> str | None:
            return cache.get_or_load(1, lambda conn: name_of(conn, 1))

        assert read() == "first"
        url = engine.url.render_as_string(hide_password=False)
        run_until_failpoint(workers.write_behind_a_fence, failpoint, url, redis_url, visit=visit)

        committed = "first" if failpoint == "cache.write-fenced" else "second"
        assert read() == committed  # without any relay
        filled = cache.stats().filled
        until(lambda: read() == committed and cache.stats().filled > filled)
        cache.relay()
        assert read() == committed
