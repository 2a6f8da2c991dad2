"""Many callers, few loads."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from time import monotonic
from typing import TypeVar

import pytest
from redis import Redis
from sqlalchemy import Connection, Engine, text

from datapatterns.cache_aside import Cache, CachePolicy
from tests.fixtures.caches import (
    ENOUGH_SECONDS,
    Gate,
    create_products,
    name_of,
    open_cache,
)

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

T = TypeVar("T")


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine) as cache:
        yield cache


def all_at_once(count: int, act: Callable[[], T]) -> list[T]:
    barrier = Barrier(count)

    def wait_and_act() -> T:
        barrier.wait(ENOUGH_SECONDS)
        return act()

    with ThreadPoolExecutor(count) as pool:
        return [
            future.result(ENOUGH_SECONDS)
            for future in [pool.submit(wait_and_act) for _ in range(count)]
        ]


class Counted:
    """A loader that counts; it returns when others have had their chance to come."""

    def __init__(self, waits_for: Callable[[], bool]) -> None:
        self._waits_for = waits_for
        self._lock = Lock()
        self.count = 0

    def __call__(self, conn: Connection) -> str | None:
        with self._lock:
            self.count += 1
        deadline = monotonic() + 1
        while not self._waits_for() and monotonic() < deadline:
            conn.execute(text("SELECT"))
        return name_of(conn, 1)


def test_two_hundred_callers_cost_one_load(cache: Cache) -> None:
    load = Counted(waits_for=lambda: False)

    values = all_at_once(200, lambda: cache.get_or_load(1, load))

    assert set(values) == {"first"}
    assert load.count == cache.stats().loads == 1


def start_process(engine: Engine, redis_url: str, program: str) -> subprocess.Popen[str]:
    url = engine.url.render_as_string(hide_password=False)
    return subprocess.Popen(  # noqa: S603 -- our own program
        [sys.executable, "-c", program, url, redis_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_loader_that_hangs_holds_nobody_for_ever(engine: Engine, redis_client: Redis) -> None:
    create_products(engine)
    policy = CachePolicy(redis_timeout_seconds=5, vouched_seconds=60, wait_seconds=0.1)
    gate = Gate()

    def hang(conn: Connection) -> str | None:
        gate.stop_here()
        return name_of(conn, 1)

    with open_cache(redis_client, engine, policy) as cache, ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(cache.get_or_load, 1, hang)
        gate.wait_until_reached()

        assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"

        gate.open()
        assert hanging.result(ENOUGH_SECONDS) == "first"


def test_an_error_reaches_everybody_who_waited_for_it(cache: Cache) -> None:
    gate = Gate()

    def fail(_: Connection) -> str:
        gate.stop_here()
        raise ZeroDivisionError

    def read() -> str:
        with pytest.raises(ZeroDivisionError):
            cache.get_or_load(1, fail)
        return "failed"

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(5)]
        gate.wait_until_reached()
        gate.open()
        assert [reader.result(ENOUGH_SECONDS) for reader in readers] == ["failed"] * 5

    assert cache.get_or_load(1, lambda conn: name_of(conn, 1)) == "first"


def test_a_forked_child_gets_its_own_replies(cache: Cache, engine: Engine, redis_url: str) -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
from datapatterns.cache_aside import Cache, CachePolicy

policy = CachePolicy(redis_timeout_seconds=5, vouched_seconds=60)
engine = create_engine(sys.argv[1], poolclass=NullPool)
cache = Cache(sys.argv[2], engine, name="product", policy=policy)
for number in range(100):
    cache.get_or_load(number, lambda conn: number)
child = os.fork()
wrong = 0
for round in range(30):
    for number in range(100) if child else reversed(range(100)):
        wrong += cache.get_or_load(number, lambda conn: number) != number
if child:
    wrong += os.waitpid(child, 0)[1]
    print("wrong", wrong, flush=True)
os._exit(min(wrong, 1))
"""
    assert cache.relay().is_leading
    process = start_process(engine, redis_url, program)

    assert process.communicate(timeout=60)[0] == "wrong 0\n"
