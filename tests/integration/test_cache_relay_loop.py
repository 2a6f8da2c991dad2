"""The relay as a loop of a worker, and what it tells."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis
from sqlalchemy import Engine, func, select, text

from datapatterns.cache_aside import Cache, CacheRelay
from datapatterns.errors import ServerUnavailableError
from datapatterns.runtime import CacheRelayLoop
from datapatterns.testing import ManualClock
from tests.fixtures.caches import open_cache
from tests.fixtures.observers import Noted
from tests.fixtures.queried_things import Thing, create_things

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def observer() -> Noted:
    return Noted()


@pytest.fixture
def relay(engine: Engine, redis_url: str, observer: Noted) -> Iterator[CacheRelay]:
    with closing(CacheRelay(redis_url, engine, observer=observer)) as relay:
        yield relay


@pytest.fixture
def cache(engine: Engine, redis_url: str, redis_client: Redis) -> Iterator[Cache]:
    assert redis_client.dbsize() == 0
    with open_cache(redis_url, engine, name="query") as cache:
        create_things(engine, cache)
        yield cache


def test_it_looks_often_while_something_comes_and_seldom_else(
    relay: CacheRelay, cache: Cache, engine: Engine
) -> None:
    clock = ManualClock()
    loop = CacheRelayLoop(relay, clock=clock)

    idle = [loop.step() for _ in range(8)]
    with engine.begin() as conn:
        cache.invalidate_in(conn, 1)
    busy = loop.step()

    assert idle == sorted(idle)
    assert (idle[-1], busy) == (0.25, 0.005)


@pytest.mark.usefixtures("cache")
def test_one_leads_and_the_others_wait(relay: CacheRelay, engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("SELECT FROM datapatterns.cache_target FOR UPDATE"))
        loop = CacheRelayLoop(relay)

        assert loop.step() == 0.25
        assert not relay.run().is_leading


def test_it_tells_what_waits_and_what_was_sent(
    relay: CacheRelay, cache: Cache, engine: Engine, observer: Noted
) -> None:
    cups = select(func.count()).select_from(Thing).where(Thing.kind == "cup")
    cache.query(cups)
    with engine.begin() as conn:
        conn.execute(text("UPDATE thing SET kind = 'jar' WHERE id = 1"))
        cache.invalidate_in(conn, "a", "b")

    assert relay.status().waiting_rows == 3  # of the log two images of a row, of the outbox one
    CacheRelayLoop(relay).step()

    assert relay.status().waiting_rows == 0
    assert observer.total("datapatterns.cache.relay.waiting") == 3
    assert observer.total("datapatterns.cache.relay.rounds") == 1
    assert observer.total("datapatterns.cache.relay.replayed") > 3
    [lag] = observer.durations["datapatterns.cache.relay.lag"]
    assert lag > 0
    assert cache.query(cups) == [(1,)]


def test_its_status_shows_what_it_follows_and_what_is_kept(
    relay: CacheRelay, cache: Cache, engine: Engine
) -> None:
    cache.query(select(Thing.id))
    cache.get_or_load("{odd}:key", lambda _: 1)
    with engine.begin() as conn:
        conn.execute(text("ALTER TABLE thing ADD COLUMN colour text"))

    status = relay.status()

    assert status.values == {"query": 2}
    assert status.is_vouched_for
    followed = {each.name: each.further_columns for each in status.followed}
    assert followed == {"public.mark": (), "public.shelf": (), "public.thing": ("colour",)}


def test_a_silent_redis_is_raised_by_a_round_and_shown_by_a_status(engine: Engine) -> None:
    with closing(CacheRelay("redis://127.0.0.1:1", engine)) as relay:
        with pytest.raises(ServerUnavailableError):
            relay.run()

        assert relay.status().is_vouched_for is None
