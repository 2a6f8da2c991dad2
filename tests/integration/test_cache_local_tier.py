"""Values kept in the process: others' writes reach them, one's own are seen at once."""

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from threading import enumerate as threads
from time import monotonic

import pytest
from redis import ConnectionPool, Redis
from redis._parsers import _RESP2Parser
from sqlalchemy import Engine, text

from datapatterns.cache_aside import Cache, local_tier
from datapatterns.cache_aside.codec import Codec, Stored
from datapatterns.cache_aside.links import Links
from datapatterns.cache_aside.local_tier import LocalTier, Slot
from datapatterns.errors import CacheKeyError, SettingsError
from datapatterns.telemetry import SilentObserver
from tests.fixtures.caches import (
    PATIENT,
    Product,
    create_products,
    load_product,
    name_of,
    open_cache,
    rename,
    until,
)
from tests.fixtures.local_tiers import LOCAL, is_kept, tier_of, trackers, until_kept, until_told

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


@pytest.fixture
def cache(engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    create_products(engine)
    with open_cache(redis_client, engine, LOCAL) as cache:
        until_told(cache)
        yield cache


@pytest.fixture
def another(cache: Cache, engine: Engine, redis_client: Redis) -> Iterator[Cache]:
    """The same cache as in another process: it keeps nothing, nor lets others forget."""
    with open_cache(redis_client, engine) as another:
        read(cache)
        yield another


def read(cache: Cache, number: int = 1) -> str | None:
    return cache.get_or_load(number, lambda conn: name_of(conn, number))


def links(cache: Cache) -> Links:
    found = cache._backing.links  # noqa: SLF001 -- where the answers come in
    assert isinstance(found, Links)
    return found


def write(cache: Cache, name: str, number: int = 1, tags: tuple[str, ...] = ()) -> None:
    with cache.writes() as conn:
        rename(conn, number, name)
        cache.invalidate_in(conn, number, tags=tags)


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let writers of this process be those of another: nobody here forgets by himself."""
    for module in ("backing", "delivering", "relaying"):
        monkeypatch.setattr(f"datapatterns.cache_aside.{module}.forget_in_process", lambda *_: None)


def test_a_hit_is_kept_and_asks_redis_no_more(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_kept(cache, lambda: read(cache))
    monkeypatch.setattr(links(cache), "fetch", None)

    assert [read(cache) for _ in range(5)] == ["first"] * 5
    assert cache.stats().hit_ratio > 0.5


def test_calls_of_a_function_are_served_by_their_arguments(cache: Cache) -> None:
    product = cache.cached(load_product)
    until_kept(cache, lambda: product(1))

    assert product(1) is product(1) == Product(1, "first")
    until_kept(cache, lambda: product(product_id=1))
    with pytest.raises(CacheKeyError, match="int, str"):
        product(1.0)  # type: ignore[arg-type]


@pytest.mark.usefixtures("far_away")
def test_anothers_write_takes_it_away(cache: Cache, another: Cache) -> None:
    until_kept(cache, lambda: read(cache))

    write(another, "second")
    until(lambda: not is_kept(cache, "product:i1"))
    assert read(cache) == "second"


@pytest.mark.usefixtures("far_away")
def test_anothers_write_that_only_the_relay_tells_of_does_so_too(
    cache: Cache, another: Cache, engine: Engine
) -> None:
    until_kept(cache, lambda: read(cache))

    with engine.begin() as conn:
        rename(conn, 1, "second")
        another.invalidate_in(conn, 1)
    another.relay()
    until(lambda: read(cache) == "second")


@pytest.mark.usefixtures("far_away")
def test_a_changed_tag_takes_away_what_depends_on_it(cache: Cache, another: Cache) -> None:
    def read_tagged(number: int, tag: str) -> str | None:
        return cache.get_or_load(number, lambda conn: name_of(conn, number), tags=[tag])

    until_kept(cache, lambda: read_tagged(1, "offer"))
    until_kept(cache, lambda: read_tagged(2, "shop"))

    with another.writes() as conn:
        rename(conn, 1, "second")
        rename(conn, 2, "second")
        another.invalidate_in(conn, tags=["offer"])
    until(lambda: not is_kept(cache, "product:i1"))
    assert is_kept(cache, "product:i2")
    assert read_tagged(1, "offer") == "second"
    assert read_tagged(2, "shop") == "first"


def test_loads_of_what_has_the_same_tag_take_nothing_away(cache: Cache, another: Cache) -> None:
    def read_tagged(cache: Cache, number: int) -> str | None:
        return cache.get_or_load(number, lambda conn: name_of(conn, number), tags=["offer"])

    until_kept(cache, lambda: read_tagged(cache, 1))
    until_kept(cache, lambda: read(cache, 3))
    read_tagged(another, 2)
    write(another, "second", 3)
    until(lambda: not is_kept(cache, "product:i3"))  # by then, all that was before has been heard

    assert is_kept(cache, "product:i1")


def test_ones_own_write_is_seen_at_once(
    cache: Cache, engine: Engine, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapatterns.cache_aside.tracking._Listener._pushed", lambda *_: None)
    with open_cache(redis_client, engine, LOCAL, name="names") as names, ExitStack() as stack:
        twin = stack.enter_context(open_cache(redis_client, engine, LOCAL))
        until_told(names)
        until_told(twin)

        def read_all() -> list[str | None]:
            tagged = names.get_or_load(1, lambda conn: name_of(conn, 1), tags=["product:i1"])
            return [read(cache), read(twin), tagged]

        for each in (cache, twin, names):
            until_kept(each, read_all, is_told=False)
        assert read_all() == ["first"] * 3
        write(cache, "second", tags=("product:i1",))
        assert read_all() == ["second"] * 3
        assert read_all() == ["second"] * 3

        with engine.begin() as conn:
            rename(conn, 1, "third")
            cache.invalidate_in(conn, 1, tags=["product:i1"])
        cache.relay()
        assert read_all() == ["third"] * 3


def test_what_is_loaded_anew_replaces_it_at_once(
    cache: Cache, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapatterns.cache_aside.tracking._Listener._pushed", lambda *_: None)
    product = cache.cached(load_product)
    assert product(1) == product(1) == product(1) == Product(1, "first")

    with engine.begin() as conn:
        rename(conn, 1, "second")
    assert product(1) == Product(1, "first")
    assert product.refresh(1) == Product(1, "second")
    assert product(1) == Product(1, "second")


def test_a_transaction_sees_its_own_writes(cache: Cache, engine: Engine) -> None:
    product = cache.cached(load_product)
    assert product(1) == product(1) == product(1)

    with engine.begin() as conn:
        rename(conn, 1, "second")
        product.invalidate_in(conn, 1)
        assert product.within(conn, 1) == Product(1, "second")
        assert product(1) == Product(1, "first")


def test_many_are_kept_and_served_together(cache: Cache) -> None:
    def read_many() -> dict[int, Product | None]:
        return cache.get_many(
            [1, 2, 99],
            lambda conn, keys: {
                key: product for key in keys if (product := load_product(conn, key))
            },
            value_type=Product | None,
            tags=lambda _: ["offer"],
        )

    expected = {1: Product(1, "first"), 2: Product(2, "first"), 99: None}
    assert read_many() == read_many() == expected
    until_kept(cache, read_many, values=3)
    write(cache, "second", 2)
    assert read_many() == expected | {2: Product(2, "second")}


class Unmarked(LocalTier):
    """A tier that does without marks."""

    def keep(
        self,
        mark: Slot,
        codec: Codec[object],
        stored: Stored[object],
        raw: bytes,
        early_refresh: float,
    ) -> None:
        self._slots[mark.entry] = mark
        super().keep(mark, codec, stored, raw, early_refresh)


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("tier", [LocalTier, Unmarked])
def test_news_may_overtake_the_value_that_they_make_obsolete(
    tier: type[LocalTier], engine: Engine, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the answer of Redis and its being kept, somebody writes and all have heard of it."""
    monkeypatch.setattr("datapatterns.cache_aside.backing.LocalTier", tier)
    create_products(engine)
    with (
        open_cache(redis_client, engine, LOCAL) as cache,
        open_cache(redis_client, engine) as another,
    ):
        until_told(cache)
        read(another)
        fetch = links(cache).fetch

        def overtaken(*command: object) -> object:
            monkeypatch.setattr(links(cache), "fetch", fetch)
            reply = fetch(*command)  # type: ignore[arg-type]
            write(another, "second")
            until(lambda: not is_kept(cache, "product:i1"))
            return reply

        monkeypatch.setattr(links(cache), "fetch", overtaken)
        assert read(cache) == "first"  # it asked before the write

        # What marks are for: without them the old value stays as long as it may live.
        assert read(cache) == ("first" if tier is Unmarked else "second")


def test_one_connection_serves_all_caches_and_ends_with_the_last(
    engine: Engine, redis_client: Redis
) -> None:
    create_products(engine)
    before = set(threads())
    with ExitStack() as stack:
        caches = [
            stack.enter_context(open_cache(redis_client, engine, LOCAL, name=name))
            for name in ("product", "offer", "shop")
        ]
        for cache in caches:
            until_told(cache)
        until(lambda: all(tier_of(cache).hears for cache in caches))
        assert len(trackers(redis_client)) == 1
        assert len(set(threads()) - before) == 1

        caches[0].close()
        assert len(trackers(redis_client)) == 1
    assert set(threads()) == before
    until(lambda: trackers(redis_client) == [])


def test_it_hears_without_hiredis(engine: Engine, redis_url: str, redis_client: Redis) -> None:
    assert redis_client.dbsize() == 0
    create_products(engine)
    pool = ConnectionPool.from_url(redis_url, parser_class=_RESP2Parser)
    with Redis(connection_pool=pool) as plain, open_cache(plain, engine, LOCAL) as cache:
        until_kept(cache, lambda: read(cache))
        redis_client.flushall()
        until(lambda: not is_kept(cache, "product:i1"))
        assert read(cache) == "first"


def test_a_role_that_may_not_be_told_is_served_from_redis(
    engine: Engine, redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    create_products(engine)
    redis_client.acl_setuser(
        "untold", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-client|tracking"]
    )
    settings = {**redis_client.connection_pool.connection_kwargs, "username": "untold"}
    pool = ConnectionPool(
        connection_class=redis_client.connection_pool.connection_class,
        **settings | {"password": "any"},
    )
    with Redis(connection_pool=pool) as untold, open_cache(untold, engine, LOCAL) as cache:
        assert [read(cache) for _ in range(3)] == ["first"] * 3
        until(lambda: "Redis tells of no changes" in caplog.text)
        assert [read(cache) for _ in range(3)] == ["first"] * 3
        assert (cache.stats().local_hits, cache.stats().hits) == (0, 5)
    redis_client.acl_deluser("untold")


def test_a_closed_cache_that_is_used_keeps_values_again(cache: Cache, redis_client: Redis) -> None:
    read(cache)
    read(cache)
    cache.close()
    assert tier_of(cache).count == 0
    until(lambda: trackers(redis_client) == [])

    assert read(cache) == "first"
    until_kept(cache, lambda: read(cache))


def test_a_cache_that_nobody_holds_any_more_is_not_listened_for(
    engine: Engine, redis_client: Redis
) -> None:
    create_products(engine)
    before = set(threads())
    cache = Cache(redis_client, engine, name="product", policy=LOCAL)
    until_told(cache)
    links(cache).close()
    del cache
    gc.collect()

    until(lambda: set(threads()) == before)


def test_values_with_time_left_outlive_a_look_at_the_gate(cache: Cache) -> None:
    until_kept(cache, lambda: read(cache))
    hits = cache.stats().hits
    until(lambda: tier_of(cache).until < monotonic())

    assert read(cache) == "first"
    assert cache.stats().hits == hits


def test_hits_are_told_in_sums(engine: Engine, redis_client: Redis) -> None:
    told: dict[str, int] = {}

    class Listening(SilentObserver):
        def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
            if attributes == {"cache": "product"}:
                told[name] = told.get(name, 0) + amount

    create_products(engine)
    with closing(
        Cache(redis_client, engine, name="product", policy=LOCAL, observer=Listening())
    ) as cache:
        until_kept(cache, lambda: read(cache))
    assert told["datapatterns.cache.local_hits"] == cache.stats().local_hits >= 3


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(SettingsError, match="local_bytes"):
        replace(PATIENT, local_bytes=-1)


# What Python says of it from 3.12 on is what is tested here.
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_keeps_its_own_values_and_listens_for_itself(
    cache: Cache, engine: Engine, redis_client: Redis
) -> None:
    until_kept(cache, lambda: read(cache))
    [parents] = trackers(redis_client)
    # As another thread might at that moment.
    gate = cache._backing.gate  # noqa: SLF001
    with local_tier._lock, tier_of(cache)._lock, gate._checking, gate._state:  # noqa: SLF001
        child = os.fork()
        if child == 0:
            _read_in_the_child(cache, engine)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert trackers(redis_client) == [parents]
    until_kept(cache, lambda: read(cache))


def _read_in_the_child(cache: Cache, engine: Engine) -> None:
    code = 1
    try:
        engine.dispose(close=False)  # as SQLAlchemy tells forked processes to
        assert tier_of(cache).count == 0
        until_kept(cache, lambda: read(cache))
        with engine.begin() as conn:
            conn.execute(text("UPDATE product SET name = 'of the child'"))
            cache.invalidate_in(conn, 1)
        cache.relay()
        assert read(cache) == "of the child"
        with engine.begin() as conn:
            conn.execute(text("UPDATE product SET name = 'first'"))
            cache.invalidate_in(conn, 1)
        cache.relay()
        cache.close()
        code = 0
    finally:
        os._exit(code)
