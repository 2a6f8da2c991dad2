"""Regions of dogpile.cache on our backend: its own suites, and what they do not ask for."""

import pickle
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from threading import Barrier, Lock
from typing import Any, ClassVar

import pytest
from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import NO_VALUE, CacheMutex
from dogpile.cache.util import sha1_mangle_key
from dogpile.testing.fixtures import (
    _GenericBackendTestSuite,
    _GenericMutexTestSuite,
    _GenericSerializerTestSuite,
)
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from datapatterns.cache_aside import DogpileBackend, lease_mutex
from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.lua_scripts import Command
from datapatterns.errors import (
    CacheKeyError,
    ServerUnavailableError,
    SettingsError,
    UncacheableValueError,
)
from tests.fixtures.caches import Gate
from tests.fixtures.dogpile_regions import NAME, with_dogpile_backend
from tests.fixtures.effort import THOROUGH

pytestmark = pytest.mark.redis

NOBODY = "redis://127.0.0.1:1"
with_dogpile_backend()


class OnOurBackend:
    backend = NAME
    # Nothing connects before it is used.
    config_args: ClassVar[dict[str, Any]] = {"arguments": {"url": NOBODY}}

    @pytest.fixture(autouse=True)
    def _on_a_server(
        self, request: pytest.FixtureRequest, redis_url: str, redis_client: Redis
    ) -> None:
        assert redis_client.dbsize() == 0
        type(self).config_args = {"arguments": {"url": redis_url, "socket_timeout": 10}}
        if request.node.get_closest_marker("time_intensive") and not THOROUGH:
            pytest.skip("sleeps for seconds; run by make torture")


class TestBackend(OnOurBackend, _GenericBackendTestSuite):
    pass


class TestSerializer(
    OnOurBackend,
    _GenericSerializerTestSuite,
    _GenericBackendTestSuite,
):
    pass


class TestMutex(OnOurBackend, _GenericMutexTestSuite):
    pass


@dataclass(frozen=True)
class Product:
    id: int
    names: tuple[str, ...]


@pytest.fixture
def opened(redis_url: str, redis_client: Redis) -> Iterator[Callable[..., CacheRegion]]:
    regions: list[CacheRegion] = []

    def opened(
        region: CacheRegion | None = None, *, url: str = redis_url, **arguments: object
    ) -> CacheRegion:
        told = {"url": url, "socket_timeout": 10, **arguments}
        regions.append((region or make_region()).configure(NAME, arguments=told))
        return regions[-1]

    assert redis_client.dbsize() == 0
    yield opened
    for each in regions:
        each.actual_backend.close()


def get(
    region: CacheRegion, key: str = "k", creator: Callable[[], object] = lambda: "new"
) -> object:
    found: object = region.get_or_create(key, creator)
    return found


def after(act: Callable[[], object], value: str) -> Callable[[], str]:
    """Return a creator of ``value`` that does something first."""

    def creator() -> str:
        act()
        return value

    return creator


def test_the_package_says_where_the_backend_is() -> None:
    written = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())

    [(name, value)] = written["project"]["entry-points"]["dogpile.cache"].items()

    assert EntryPoint(name, value, "dogpile.cache").load() is DogpileBackend
    assert name == NAME


def test_what_is_loaded_while_another_process_deletes_is_not_stored(
    opened: Callable[..., CacheRegion],
) -> None:
    region, other = opened(), opened()

    assert get(region, creator=after(partial(other.delete, "k"), "old")) == "old"
    assert region.get("k") is NO_VALUE


def test_a_store_that_asks_for_no_lease_keeps_what_is_too_old(
    opened: Callable[..., CacheRegion], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = "redis.call('GET', KEYS[i + 1]) == ARGV[j]"
    source = lease_mutex._STORE  # noqa: SLF001 -- the guard
    assert source.count(guard) == 1
    monkeypatch.setattr(lease_mutex, "_STORE", source.replace(guard, "true"))
    region, other = opened(), opened()

    get(region, creator=after(partial(other.delete, "k"), "old"))

    assert region.get("k") == "old"


def test_of_many_that_are_loaded_together_only_those_are_stored_that_nobody_deleted(
    opened: Callable[..., CacheRegion],
) -> None:
    region, other = opened(), opened()

    def creator(*keys: str) -> list[str]:
        other.delete("b")
        return [f"old {key}" for key in keys]

    assert region.get_or_create_multi(["a", "b", "c"], creator) == ["old a", "old b", "old c"]
    assert region.get_multi(["a", "b", "c"]) == ["old a", NO_VALUE, "old c"]


@pytest.mark.parametrize("in_this_process", [True, False])
def test_what_is_set_by_hand_outlives_a_load_that_began_before(
    *, in_this_process: bool, opened: Callable[..., CacheRegion]
) -> None:
    region = opened()
    writer = region if in_this_process else opened()
    with ThreadPoolExecutor(1) as pool:
        get(region, creator=after(lambda: pool.submit(writer.set, "k", "new").result(), "old"))

    assert region.get("k") == "new"


def test_a_creator_may_set_its_own_key_on_the_way(opened: Callable[..., CacheRegion]) -> None:
    region = opened()

    assert get(region, creator=after(partial(region.set, "k", "half"), "whole")) == "whole"
    assert region.get("k") == "whole"


@pytest.mark.parametrize("deletes", [True, False])
def test_what_is_loaded_in_the_background_is_stored_unless_somebody_deleted(
    *, deletes: bool, opened: Callable[..., CacheRegion]
) -> None:
    with ThreadPoolExecutor(1) as pool:

        def run(
            region: CacheRegion, key: str, creator: Callable[[], object], mutex: CacheMutex
        ) -> None:
            def load() -> None:
                try:
                    value = creator()
                    if deletes:
                        other.delete(key)
                    region.set(key, value)
                finally:
                    mutex.release()

            pool.submit(load).result()

        region = opened(make_region(async_creation_runner=run))
        other = opened()
        region.set("k", "first")
        assert region.get_or_create("k", lambda: "second", expiration_time=1e-9) == "first"

    assert region.get("k") == (NO_VALUE if deletes else "second")
    assert not region.key_is_locked("k")


def test_a_holder_that_died_holds_nobody_up_for_ever(opened: Callable[..., CacheRegion]) -> None:
    dead, region = opened(lock_timeout=0.05), opened()
    assert dead.backend.get_mutex("k").acquire()

    assert get(region) == "new"


def test_whoever_lost_its_lease_gives_back_no_others(opened: Callable[..., CacheRegion]) -> None:
    slow, quick = opened().backend.get_mutex("k"), opened()
    assert slow.acquire()
    quick.delete("k")
    assert quick.backend.get_mutex("k").acquire()

    slow.release()

    assert slow.locked()
    assert not slow.acquire(wait=False)


def test_whoever_waited_in_vain_has_its_value_and_stores_nothing(
    opened: Callable[..., CacheRegion],
) -> None:
    holder, region = opened(), opened(lock_blocking_timeout=0.02)
    assert holder.backend.get_mutex("k").acquire()

    assert get(region) == "new"
    assert region.get("k") is NO_VALUE
    assert region.key_is_locked("k")


def test_of_many_threads_one_creates(opened: Callable[..., CacheRegion]) -> None:
    region, barrier, created = opened(), Barrier(12), list[int]()

    def read() -> object:
        barrier.wait()
        return get(region, creator=after(partial(created.append, 1), "new"))

    with ThreadPoolExecutor(12) as pool:
        assert {future.result() for future in [pool.submit(read) for _ in range(12)]} == {"new"}
    assert len(created) == 1


def test_many_keys_are_one_round_trip(
    opened: Callable[..., CacheRegion], monkeypatch: pytest.MonkeyPatch
) -> None:
    region, commands = opened(), list[str]()
    region.get("connected")
    original = Links.call

    def call(self: Links, command: Command) -> object:
        commands.append(str(command[0]))
        return original(self, command)

    monkeypatch.setattr(Links, "call", call)
    keys = [f"key {n}" for n in range(500)]

    region.set_multi(dict.fromkeys(keys, "value"))
    assert region.get_multi(keys) == ["value"] * 500
    region.delete_multi(keys)
    region.delete_multi([])

    assert commands == ["EVAL", "MGET", "UNLINK"]
    assert region.get_multi([*keys, "another"]) == [NO_VALUE] * 501


@given(keys=st.lists(st.text(max_size=400), min_size=2, max_size=6, unique=True))
def test_keys_of_any_letters_are_told_apart(keys: list[str]) -> None:
    backend = DogpileBackend({"url": NOBODY})
    try:
        names = [backend._value_key(key) for key in keys]  # noqa: SLF001 -- pure
    except CacheKeyError:
        assert any("\ud800" <= letter <= "\udfff" for key in keys for letter in key)
        return

    assert len({*names}) == len(names)
    assert all(name.count("{") == name.count("}") == 1 for name in names)
    assert all(len(name) < 300 for name in names)


def test_a_regions_own_mangler_is_used(
    opened: Callable[..., CacheRegion], redis_client: Redis
) -> None:
    region = opened(make_region(key_mangler=lambda key: sha1_mangle_key(key.encode())))

    region.set("a{b}:ü", 1)

    assert region.get("a{b}:ü") == 1
    expected = f"datapatterns:dogpile:value:{{:s{sha1_mangle_key('a{b}:ü'.encode())}}}"
    assert redis_client.exists(expected)


def test_values_end_when_they_are_told_to(
    opened: Callable[..., CacheRegion], redis_client: Redis
) -> None:
    opened(redis_expiration_time=100).set("ends", 1)
    opened().set("lasts", 1)

    lives = {name: redis_client.pttl(name) for name in redis_client.keys("*")}

    assert sorted(life > 0 for life in lives.values()) == [False, True]
    assert max(lives.values()) <= 100_000


@pytest.mark.parametrize("value", [(1, 2), {1: (2,)}, object(), {3, 4}, Product(1, ())])
def test_what_would_come_back_as_something_else_is_refused(
    value: object, opened: Callable[..., CacheRegion]
) -> None:
    with pytest.raises(UncacheableValueError, match="name its type"):
        get(opened(), creator=lambda: value)


@pytest.mark.parametrize("value", [None, "ü", 2**40, 1.5, float("nan"), [1, {"a": b"\0"}], True])
def test_plain_data_comes_back(value: object, opened: Callable[..., CacheRegion]) -> None:
    region = opened()
    region.set("k", value)

    found = region.get("k")

    assert repr(found) == repr(value)


def test_values_of_a_declared_type_come_back_as_it(opened: Callable[..., CacheRegion]) -> None:
    region = opened(value_type=Product | None)
    region.set_multi({"a": Product(1, ("Rolls", "Buns")), "b": None})

    assert region.get_multi(["a", "b"]) == [Product(1, ("Rolls", "Buns")), None]
    # Another release of the program, which knows another shape, loads for itself.
    assert get(opened(), "a") == "new"


class Exploit:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("payload", [pickle.dumps(Exploit()), b"", b"\xc1", b"\x00" * 3])
def test_foreign_bytes_are_no_value_and_never_unpickled(
    payload: bytes, opened: Callable[..., CacheRegion]
) -> None:
    region = opened()
    region.backend.set_serialized("k", b'{"ct": 99999999999, "v": 2}|' + payload)

    assert get(region) == "new"
    assert region.get("k") == "new"


def test_without_redis_creators_create_one_at_a_time_and_writers_are_told(
    opened: Callable[..., CacheRegion],
) -> None:
    region, running, gate = opened(url=NOBODY), Lock(), Gate()
    region.get("the breaker learns of it")

    def creator() -> str:
        with_nobody_else = running.acquire(blocking=False)
        gate.stop_here()
        running.release()
        assert with_nobody_else
        return "new"

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(get, region, creator=creator) for _ in range(2)]
        gate.wait_until_reached()
        assert region.key_is_locked("k")
        gate.open()
        assert [reader.result() for reader in readers] == ["new", "new"]
    with pytest.raises(ServerUnavailableError):
        region.set("k", "v")
    with pytest.raises(ServerUnavailableError):
        region.delete("k")


@pytest.mark.parametrize(
    "arguments",
    [
        {"distributed_lock": False},
        {"lock_timeout": 0},
        {"redis_expiration_time": -1},
        {"lock_timeout": "soon"},
        {"key_prefix": "a:b"},
        {"url": "http://user:secret@x"},
        {"url": "redis://user:secret@x", "connection_kwargs": {"none": 1}},
    ],
)
def test_arguments_that_cannot_be_used_are_refused_and_not_quoted(
    arguments: dict[str, Any],
) -> None:
    with pytest.raises(SettingsError) as told:
        make_region().configure(NAME, arguments={"url": NOBODY} | arguments)

    assert "secret" not in str(told.value)


def test_arguments_without_a_meaning_are_told(caplog: pytest.LogCaptureFixture) -> None:
    make_region().configure(NAME, arguments={"url": NOBODY, "lock_sleep": 1})

    assert "lock_sleep" in caplog.text
