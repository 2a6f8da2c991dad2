"""What makes bytes of values: JSON, or functions of the user's own."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Connection, Engine, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from datapatterns.cache_aside import AsyncCache, Cache, CachePolicy, Serializer
from datapatterns.cache_aside.codec import HEADER_BYTES, Codec
from datapatterns.errors import SettingsError, UncacheableValueError
from tests.fixtures.caches import PATIENT, Product, create_products, load_product, open_cache
from tests.fixtures.local_tiers import until_kept, until_told

JSON = replace(PATIENT, serializer="json")
POLICY: Final = CachePolicy(early_refresh=0)
on_servers = [pytest.mark.postgres, pytest.mark.redis]


@dataclass(frozen=True)
class Offer:
    price: Decimal
    since: date
    stock: dict[int, tuple[str, ...]]
    picture: bytes
    weight: float | None = None


OFFER = Offer(Decimal("1.10"), date(2026, 1, 1), {7: ("Brötchen",)}, b"\x00\xff")


def dumps(value: object) -> bytes:
    return json.dumps(value).encode()


def failing(_: object) -> Any:  # noqa: ANN401 -- whatever is asked for
    raise LookupError("of the caller's own")


def numbered(number: int, _: Connection) -> list[int]:
    return [number]


def own(
    name: str = "own",
    encode: Callable[[Any], bytes] = dumps,
    decode: Callable[[bytes], Any] = json.loads,
) -> CachePolicy:
    return replace(PATIENT, serializer=Serializer(name, encode, decode))


def raw_of(codec: Codec[Any], value: object) -> bytes:
    canonical, payload = codec.canonical(value)
    packed = codec.pack(canonical, payload, took_ms=1, now_ms=0, policy=POLICY, jitter=0)
    assert packed is not None
    return packed.raw


def test_json_gives_back_what_a_type_holds() -> None:
    codec: Codec[Offer] = Codec(Offer, "json")
    raw = raw_of(codec, OFFER)

    stored = codec.parse(raw)
    assert stored is not None
    assert stored.value == OFFER
    assert json.loads(raw[HEADER_BYTES:])["since"] == "2026-01-01"


@pytest.mark.parametrize(
    ("value_type", "value"),
    [
        (float | None, float("nan")),
        (float | None, float("inf")),
        (float, float("nan")),
        (Offer, replace(OFFER, weight=float("-inf"))),
        (Any, {1: "number as a key"}),
        (Any, b"bytes"),
        (Any, (1, 2)),
        (str, "\ud800"),
    ],
)
def test_json_stores_nothing_that_would_come_back_as_another_value(
    value_type: object, value: object
) -> None:
    with pytest.raises(UncacheableValueError):
        Codec[Any](value_type, "json").canonical(value)


def test_what_is_unequal_to_itself_is_no_loss() -> None:
    codec: Codec[Any] = Codec(list[Decimal], "json")

    [returned], _ = codec.canonical([Decimal("NaN")])
    assert returned.is_nan()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_plain_data_comes_back_or_is_refused(value: object) -> None:
    codec: Codec[Any] = Codec(Any, "json")
    try:
        canonical, _ = codec.canonical(value)
    except UncacheableValueError:
        return

    assert canonical == value
    stored = codec.parse(raw_of(codec, value))
    assert stored is not None
    assert repr(stored.value) == repr(value)


@pytest.mark.parametrize("value", [5, "text", [1, "two"], None])
def test_what_one_serializer_wrote_no_other_reads(value: object) -> None:
    def same(name: str) -> Codec[Any]:
        return Codec(Any, Serializer(name, dumps, json.loads))

    codecs = [Codec[Any](Any), Codec[Any](Any, "json"), same("one"), same("another")]
    for writer in codecs:
        raw = raw_of(writer, value)
        assert [reader.parse(raw) is not None for reader in codecs] == [
            reader is writer for reader in codecs
        ]


def test_messagepack_reads_what_it_wrote_before_there_was_a_choice() -> None:
    codec: Codec[int] = Codec(int)
    raw = bytes.fromhex("01000100e09304000000000072fbce3d05")

    assert raw_of(codec, 5) == raw


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (lambda: CachePolicy(serializer="pickle"), "'pickle' is none"),  # type: ignore[arg-type]  # none
        (lambda: Serializer("json", dumps, json.loads), "no name of its own"),
        (lambda: Serializer(" ", dumps, json.loads), "no name of its own"),
        (lambda: Serializer("own", dumps, None), "give it both"),  # type: ignore[arg-type]  # none
    ],
)
def test_what_is_no_serializer_is_refused_where_it_is_written(
    refused: Callable[[], object], why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        refused()


class TestOnServers:
    """Caches that keep values so."""

    pytestmark = on_servers

    @pytest.fixture(autouse=True)
    def products(self, engine: Engine) -> None:
        create_products(engine)

    def test_a_hit_comes_from_json(self, engine: Engine, redis_client: Redis) -> None:
        with open_cache(redis_client, engine, JSON) as cache:
            product = cache.cached(load_product)
            assert product(1) == product(1) == Product(1, "first")
            assert product(99) is product(99) is None
            assert cache.stats().loads == 2

        [key] = redis_client.keys("*:value:*product:i1*")
        raw = redis_client.get(key)
        assert isinstance(raw, bytes)
        assert raw.endswith(b'{"id":1,"name":"first"}')

    def test_rows_of_a_query_come_from_json(self, engine: Engine, redis_client: Redis) -> None:
        with open_cache(redis_client, engine, JSON) as cache:
            statement = select(literal(1).label("id"), literal("first").label("name"))
            found = [cache.query(statement, value_type=Product, tags=["p"]) for _ in range(2)]
            assert cache.stats().loads == 1

        assert found == [[Product(1, "first")]] * 2

    def test_two_caches_never_misread_each_other(self, engine: Engine, redis_client: Redis) -> None:
        policies = [PATIENT, JSON, own("first"), own("second")]
        caches = [Cache(redis_client, engine, name="product", policy=each) for each in policies]
        for _ in range(2):
            for place, cache in enumerate(caches):
                found = [cache.get_or_load(1, partial(numbered, place)) for _ in range(2)]
                assert found == [[place]] * 2
                assert cache.get_or_load(1, lambda _: [-1]) == [place]

        assert all(cache.stats().foreign for cache in caches)
        for cache in caches:
            cache.close()

    @pytest.mark.parametrize(
        ("policy", "error"),
        [
            (own(encode=failing), LookupError),
            (own(decode=failing), LookupError),
            (own(encode=json.dumps), SettingsError),  # type: ignore[arg-type]  # returns str
        ],
        ids=["encode", "decode", "no bytes"],
    )
    def test_errors_of_the_callers_functions_are_his_and_leave_no_lease(
        self, engine: Engine, redis_client: Redis, policy: CachePolicy, error: type[Exception]
    ) -> None:
        with open_cache(redis_client, engine, policy) as cache:
            cache.relay()
            for _ in range(2):
                with pytest.raises(error):
                    cache.get_or_load(1, lambda _: "value")
                with pytest.raises(error):
                    cache.get_many([1, 2], lambda _, keys: dict.fromkeys(keys, "value"))
            assert cache.stats().waits == 0

        assert redis_client.keys("*:lease:*") == []
        assert redis_client.keys("*:value:*") == []

    def test_so_they_are_for_asyncio(self, engine: Engine, redis_url: str) -> None:
        async def load(_: AsyncConnection) -> str:
            return "value"

        async def scenario() -> int:
            async_engine = create_async_engine(engine.url)
            cache = AsyncCache(redis_url, async_engine, name="product", policy=own(encode=failing))
            for _ in range(2):
                with pytest.raises(LookupError):
                    await cache.get_or_load(1, load)
            await cache.close()
            good = AsyncCache(redis_url, async_engine, name="product", policy=own())
            assert [await good.get_or_load(1, load) for _ in range(2)] == ["value"] * 2
            await good.close()
            await async_engine.dispose()
            return good.stats().loads + cache.stats().waits

        assert asyncio.run(scenario()) == 1

    def test_stored_bytes_that_cannot_be_decoded_count_as_nothing(
        self, engine: Engine, redis_client: Redis
    ) -> None:
        with open_cache(redis_client, engine, own()) as cache:
            cache.get_or_load(1, lambda _: "old")
        with open_cache(redis_client, engine, own(decode=_only_new)) as cache:
            assert cache.get_or_load(1, lambda _: "new") == "new"
            assert cache.get_or_load(1, lambda _: "none") == "new"
            assert cache.stats().foreign > 0

    def test_what_callers_are_given_from_the_process_is_their_own(
        self, engine: Engine, redis_client: Redis
    ) -> None:
        with open_cache(redis_client, engine, replace(own(), local_bytes=2**20)) as cache:

            def read() -> list[str]:
                # The type says nothing of what these functions return.
                return cache.get_or_load(1, lambda _: ["a"], value_type=tuple[str, ...])

            until_told(cache)
            until_kept(cache, read)
            read().append("b")
            assert read() == ["a"]


def _only_new(payload: bytes) -> object:
    if payload != b'"new"':
        raise LookupError("of the caller's own")
    return json.loads(payload)
