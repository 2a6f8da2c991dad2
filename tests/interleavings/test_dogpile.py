"""Readers and writers of a region of dogpile.cache, in every order of their round trips."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import NO_VALUE
from redis import Redis

from datapatterns.cache_aside import dogpile_backend, lease_mutex
from datapatterns.testing.interleaving import Explorer, InterleavingError, Outcome
from tests.fixtures.dogpile_regions import NAME, with_dogpile_backend
from tests.fixtures.effort import THOROUGH
from tests.interleavings.designs.design import Tasks

pytestmark = pytest.mark.redis

with_dogpile_backend()
PREEMPTIONS = 3 if THOROUGH else 2


@pytest.fixture
def explorer(redis_url: str) -> Iterator[Explorer]:
    with Explorer(redis_url=redis_url, start_gate=True) as explorer:
        yield explorer


class Shop:
    """A truth, and processes that read it through regions."""

    def __init__(self, explorer: Explorer, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dogpile_backend, "SYSTEM_CLOCK", explorer.clock)
        self._redis, self._observer = redis, self._region(redis)
        self._gated = [self._region(explorer.redis()) for _ in range(2)]
        self.truth, self.created = "old", 0

    def _region(self, redis: Redis) -> CacheRegion:
        told = {"connection_pool": redis.connection_pool, "socket_timeout": 10}
        region = make_region().configure(NAME, expiration_time=3_600, arguments=told)
        region.get("connected")
        return region

    def begin(self) -> tuple[CacheRegion, CacheRegion]:
        self._redis.flushdb()
        self.truth, self.created = "old", 0
        first, second = self._gated
        return first, second

    def read(self, region: CacheRegion) -> object:
        return region.get_or_create("k", self.create)

    def read_many(self, region: CacheRegion) -> object:
        return region.get_or_create_multi(["k", "l"], lambda *keys: [self.create() for _ in keys])

    def create(self) -> str:
        self.created += 1
        return self.truth

    def write(self, region: CacheRegion) -> None:
        self.truth = "new"
        region.delete("k")

    def is_absent_or_equal(self, _: Outcome) -> None:
        cached = self._observer.get("k")
        assert cached in {NO_VALUE, self.truth}, f"cached is {cached!r}, written {self.truth!r}"

    def has_created_once(self, outcome: Outcome) -> None:
        assert set(outcome.results.values()) == {"old"}
        assert self.created == 1, f"{self.created} have created"


@pytest.fixture
def shop(explorer: Explorer, redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(explorer, redis_client, monkeypatch)


def one_reads(shop: Shop) -> Tasks:
    reader, writer = shop.begin()
    return {"reader": partial(shop.read, reader), "writer": partial(shop.write, writer)}


def one_reads_many(shop: Shop) -> Tasks:
    reader, writer = shop.begin()
    return {"reader": partial(shop.read_many, reader), "writer": partial(shop.write, writer)}


def two_read(shop: Shop) -> Tasks:
    one, two = shop.begin()
    return {"one": partial(shop.read, one), "two": partial(shop.read, two)}


@pytest.mark.parametrize("meeting", [one_reads, one_reads_many])
def test_no_value_is_stored_that_was_read_before_a_delete(
    meeting: Callable[[Shop], Tasks], explorer: Explorer, shop: Shop
) -> None:
    explored = explorer.explore(
        partial(meeting, shop), invariant=shop.is_absent_or_equal, max_preemptions=PREEMPTIONS
    )

    assert explored.exhausted


def test_a_delete_that_leaves_the_lease_lets_old_values_in(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(region: CacheRegion) -> None:
        shop.truth = "new"
        with monkeypatch.context() as patched:
            patched.setattr(dogpile_backend.DogpileBackend, "_lease_key", lambda *_: "another")
            region.delete("k")

    monkeypatch.setattr(shop, "write", write)
    with pytest.raises(InterleavingError, match="cached is 'old', written 'new'"):
        explorer.explore(partial(one_reads, shop), invariant=shop.is_absent_or_equal)


def test_a_store_without_a_lease_lets_old_values_in(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = "redis.call('GET', KEYS[i + 1]) == ARGV[j]"
    source = lease_mutex._STORE.replace(guard, "true")  # noqa: SLF001 -- the guard
    monkeypatch.setattr(lease_mutex, "_STORE", source)

    with pytest.raises(InterleavingError, match="cached is 'old', written 'new'"):
        explorer.explore(partial(one_reads, shop), invariant=shop.is_absent_or_equal)


def test_of_two_processes_one_creates(explorer: Explorer, shop: Shop) -> None:
    explored = explorer.explore(
        partial(two_read, shop), invariant=shop.has_created_once, max_preemptions=PREEMPTIONS
    )

    assert explored.exhausted


def test_a_lease_that_two_can_take_lets_both_create(
    explorer: Explorer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_mutex.LeaseMutex, "_try", lambda mutex: mutex._hold(None))  # noqa: SLF001

    with pytest.raises(InterleavingError, match="2 have created"):
        explorer.explore(partial(two_read, shop), invariant=shop.has_created_once)
