import math
import random
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from datapatterns.cache_aside.codec import HEADER_BYTES, Codec, Stored, fresh_until_ms, is_due
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.errors import SettingsError, UncacheableValueError

POLICY = CachePolicy(ttl_seconds=100, stale_seconds=50, negative_seconds=10, jitter=0.1)


@dataclass(frozen=True)
class Page:
    title: str
    price: Decimal
    since: date
    tags: tuple[str, ...] = ()


PAGE = Page("Brötchen", Decimal("1.10"), date(2026, 1, 1), ("a",))


def packed(codec: Codec[Any], value: object, policy: CachePolicy = POLICY) -> bytes | None:
    canonical, payload = codec.canonical(value)
    found = codec.pack(canonical, payload, took_ms=7, now_ms=1_000_000, policy=policy, jitter=0)
    return found and found.raw


def test_a_value_comes_back_as_its_type() -> None:
    codec: Codec[Page] = Codec(Page)
    raw = packed(codec, PAGE)

    assert raw is not None
    assert codec.parse(raw) == Stored(PAGE, 1_100_000, 7)


def test_absence_comes_back_and_lives_its_own_time() -> None:
    codec: Codec[Page | None] = Codec(Page | None)
    found = codec.pack(None, b"", took_ms=1, now_ms=0, policy=POLICY, jitter=1)

    assert found is not None
    assert found.ttl_ms == 11_000
    assert codec.parse(found.raw) == Stored(None, 11_000, 1)


def test_a_value_lives_for_its_fresh_and_its_stale_time() -> None:
    codec: Codec[int] = Codec(int)
    found = codec.pack(5, b"\x05", took_ms=1, now_ms=0, policy=POLICY, jitter=-1)

    assert found is not None
    assert found.ttl_ms == 135_000


def test_another_release_of_the_type_reads_nothing() -> None:
    @dataclass(frozen=True)
    class Page:
        title: str

    raw = packed(Codec(globals()["Page"]), PAGE)

    assert raw is not None
    assert Codec[Page](Page).parse(raw) is None


def test_every_damage_to_the_header_reads_nothing() -> None:
    codec: Codec[Page] = Codec(Page)
    raw = packed(codec, PAGE)
    assert raw is not None

    for place in (0, 1, 12, 13, 14, 15):
        damaged = bytearray(raw)
        damaged[place] ^= 0xFF
        assert codec.parse(bytes(damaged)) is None


def test_cut_off_bytes_read_nothing() -> None:
    codec: Codec[Page] = Codec(Page)
    raw = packed(codec, PAGE)
    assert raw is not None

    assert [codec.parse(raw[:end]) for end in range(len(raw))] == [None] * len(raw)


@pytest.mark.parametrize(
    "payload",
    [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000],
    ids=["huge array", "huge map", "huge bytes", "deep"],
)
def test_a_payload_that_promises_too_much_reads_nothing(payload: bytes) -> None:
    codec: Codec[Any] = Codec(Any)
    raw = packed(codec, {"a": 1})
    assert raw is not None

    assert codec.parse(raw[:HEADER_BYTES] + payload) is None


def test_a_value_that_would_come_back_as_another_is_refused_at_once() -> None:
    with pytest.raises(UncacheableValueError):
        Codec[Any](Any).canonical(object())
    with pytest.raises(UncacheableValueError):
        Codec[Page](Page).canonical({"title": 5})  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("value", [PAGE, (1, 2), [{1, 2}], {"a": Decimal("1.1")}])
def test_without_a_type_only_what_comes_back_equal_is_accepted(value: object) -> None:
    with pytest.raises(UncacheableValueError, match="name its type"):
        Codec[Any](Any).canonical(value)

    assert Codec[Any](Any).canonical([1, {"a": b"b"}])[0] == [1, {"a": b"b"}]


def test_with_a_type_the_first_caller_gets_what_the_second_gets() -> None:
    canonical, _ = Codec[Any](list[str]).canonical(("a", "b"))

    assert canonical == ["a", "b"]


def test_a_value_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(UncacheableValueError, match="surrogates"):
        Codec[Any](Any).canonical("\ud800")


def test_too_large_a_value_is_not_stored() -> None:
    policy = CachePolicy(value_bytes_max=100)

    assert packed(Codec(str), "x" * 50, policy) is not None
    assert packed(Codec(str), "x" * 100, policy) is None


def test_absence_need_not_be_remembered() -> None:
    assert packed(Codec(str), None, CachePolicy(negative_seconds=0)) is None


def test_the_share_that_refreshes_early_is_that_of_the_source() -> None:
    draws = random.Random(4)  # noqa: S311 -- draws, not secrets

    for left in (50, 100, 300):
        due = sum(
            is_due(1000 + left, 100, now_ms=1000, early_refresh=1, uniform=1 - draws.random())
            for _ in range(20_000)
        )
        assert abs(due / 20_000 - math.exp(-left / 100)) < 0.02


def test_what_is_fresh_is_due_for_nobody() -> None:
    assert fresh_until_ms(4_001, 100, early_refresh=1) == 2_001
    assert not is_due(4_001, 100, now_ms=2_000, early_refresh=1, uniform=1e-8)


@pytest.mark.parametrize(
    "settings",
    [
        {"ttl_seconds": 0},
        {"lease_seconds": -1},
        {"jitter": 1},
        {"ttl_seconds": float("nan")},
        {"wait_seconds": float("inf")},
        {"ttl_seconds": 1e15},
        {"loads_at_once": 2.5},
    ],
)
def test_times_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        CachePolicy(**settings)  # type: ignore[arg-type]  # mypy cannot tell which
