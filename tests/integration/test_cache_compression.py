"""Large values are stored compressed, and nothing that is stored blows up a reader."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from redis import Redis
from sqlalchemy import Engine

from datapatterns.cache_aside import CachePolicy, compressing
from datapatterns.cache_aside.codec import HEADER_BYTES, Codec, Packed
from datapatterns.errors import MissingExtraError, SettingsError
from tests.fixtures.caches import PATIENT, open_cache
from tests.fixtures.local_tiers import until_kept, until_told

POLICY = CachePolicy(compress_bytes_min=1_000)
LONG = ["Brötchen"] * 10_000
TEXTS: Codec[list[str]] = Codec(list[str])
_COMPRESSED = 4


def packed(
    value: object, policy: CachePolicy = POLICY, codec: Codec[Any] = TEXTS, stamps: int = 0
) -> Packed | None:
    canonical, payload = codec.canonical(value)
    return codec.pack(
        canonical, payload, took_ms=1, now_ms=0, policy=policy, jitter=0,
        stamps=(b"12345678",) * stamps,
    )  # fmt: skip


def raw_of(value: object, policy: CachePolicy = POLICY, stamps: int = 0) -> bytes:
    found = packed(value, policy, stamps=stamps)
    assert found is not None
    return found.raw


def with_frame(frame: bytes) -> bytes:
    """A compressed value of this type whose content is ``frame``."""
    return raw_of(LONG)[:HEADER_BYTES] + frame


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(compressing, "_zstandard", lambda: None)
        yield


@pytest.mark.parametrize("stamps", [0, 2])
def test_a_large_value_is_stored_smaller_and_comes_back(stamps: int) -> None:
    raw = raw_of(LONG, stamps=stamps)

    assert len(raw) < 1_000
    stored = TEXTS.parse(raw)
    assert stored is not None
    assert (stored.value, len(stored.stamps)) == (LONG, stamps)
    assert TEXTS.decode(TEXTS.payload_in(raw)) == LONG


@pytest.mark.parametrize(
    ("value", "policy"),
    [
        (["short"], POLICY),
        (LONG, replace(POLICY, compress_bytes_min=0)),
        (LONG, replace(POLICY, compress_bytes_min=1_000_000)),
        (None, POLICY),
    ],
)
def test_other_values_are_stored_as_they_are(value: object, policy: CachePolicy) -> None:
    raw = raw_of(value, policy)

    assert not raw[1] & _COMPRESSED
    stored = TEXTS.parse(raw)
    assert stored is not None
    assert stored.value == value


def test_what_does_not_get_smaller_is_stored_as_it_is() -> None:
    codec: Codec[bytes] = Codec(bytes)
    found = packed(random.Random(1).randbytes(5_000), codec=codec)  # noqa: S311 -- noise

    assert found is not None
    assert not found.raw[1] & _COMPRESSED


def test_how_large_a_value_may_be_is_counted_before_it_is_compressed() -> None:
    assert packed(LONG, replace(POLICY, value_bytes_max=50_000)) is None


def test_a_bomb_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Spied:
        def decompress(self, frame: bytes, **options: bool) -> bytes:
            begun.append(len(frame))
            return zstandard.ZstdDecompressor().decompress(frame, **options)

    monkeypatch.setattr(compressing._own, "decompressor", Spied(), raising=False)  # noqa: SLF001
    largest = POLICY.value_bytes_max
    bomb = zstandard.ZstdCompressor().compress(bytes(largest + 1))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000))

    assert TEXTS.parse(with_frame(bomb)) is None
    assert TEXTS.parse(with_frame(unsized)) is None
    assert begun == []
    assert TEXTS.parse(raw_of(LONG)) is not None
    assert len(begun) == 1


def test_damaged_frames_are_no_values() -> None:
    frame = raw_of(LONG)[HEADER_BYTES:]

    for damaged in (b"", b"no frame", frame[:-9], frame + b"more", frame * 2):
        assert TEXTS.parse(with_frame(damaged)) is None
    # Nor is one that says less than it holds.
    sized = zstandard.ZstdCompressor().compress(bytes(300))
    lying = sized.replace((300 - 256).to_bytes(2, "little"), bytes(2), 1)
    assert lying != sized
    assert TEXTS.parse(with_frame(lying)) is None


@pytest.mark.usefixtures("no_extra")
def test_a_missing_extra_is_told_where_it_is_asked_for() -> None:
    with pytest.raises(MissingExtraError, match="compression"):
        CachePolicy(compress_bytes_min=1)
    with pytest.raises(SettingsError, match="compress_bytes_min"):
        CachePolicy(compress_bytes_min=-1)


@pytest.mark.postgres
@pytest.mark.redis
def test_readers_need_the_extra_and_do_not_fail_without(
    engine: Engine, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = replace(PATIENT, compress_bytes_min=1_000)
    with open_cache(redis_client, engine, smaller) as writer:
        assert [writer.get_or_load(1, lambda _: LONG) for _ in range(2)] == [LONG] * 2
        assert writer.stats().loads == 1
    [key] = redis_client.keys("*:value:*")
    assert redis_client.strlen(key) < 1_000

    with open_cache(redis_client, engine) as reader:
        assert reader.get_or_load(1, lambda _: ["none"]) == LONG
        with monkeypatch.context() as patched:
            patched.setattr(compressing, "_zstandard", lambda: None)
            assert reader.get_or_load(1, lambda _: ["new"]) == ["new"]
        assert (reader.stats().hits, reader.stats().loads) == (1, 1)
        assert reader.stats().foreign > 0


@pytest.mark.postgres
@pytest.mark.redis
def test_the_process_keeps_them_as_they_were(engine: Engine, redis_client: Redis) -> None:
    policy = replace(PATIENT, compress_bytes_min=1_000, local_bytes=2**20)
    with open_cache(redis_client, engine, policy) as near:
        until_told(near)
        until_kept(near, lambda: near.get_or_load(1, lambda _: LONG))
        assert near.get_or_load(1, lambda _: ["none"]) == LONG
