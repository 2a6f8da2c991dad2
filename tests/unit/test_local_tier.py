"""What a process keeps beside Redis, how much, and what takes it away."""

import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from time import monotonic, time
from typing import Any, NamedTuple

import msgspec
import pytest

from datapatterns.cache_aside import CachePolicy
from datapatterns.cache_aside.codec import Codec, Stored
from datapatterns.cache_aside.local_tier import NOT_KEPT, LocalTier, Slot, forget_in_process
from datapatterns.cache_aside.shared_values import is_immutable
from datapatterns.cache_aside.standing import Standing
from datapatterns.cache_aside.steps import Wanted

STANDING = Standing("shop:1:", "server")
POLICY = CachePolicy(jitter=0, local_bytes=1_000_000)
TEXT: Codec[str] = Codec(str)
LIST: Codec[list[int]] = Codec(list[int])


def opened(policy: CachePolicy = POLICY, name: str = "product") -> LocalTier:
    tier = LocalTier(name, policy, lambda _: None)
    tier.opened(STANDING, monotonic() + 60)
    tier.tracked("server", tier.prefixes, monotonic() + 60)
    return tier


@pytest.fixture
def tier() -> LocalTier:
    return opened()


def keep(
    tier: LocalTier, value: object, *, entry: str = "product:i1", tags: tuple[str, ...] = (),
    codec: Codec[Any] = TEXT, mark: Slot | None = None,
) -> None:  # fmt: skip
    mark = mark or tier.expect(Wanted(entry, tags), STANDING)
    assert mark is not None
    canonical, payload = codec.canonical(value)
    packed = codec.pack(
        canonical, payload, took_ms=0, now_ms=time() * 1000, policy=POLICY, jitter=0,
        stamps=tuple(b"12345678" for _ in tags),
    )  # fmt: skip
    assert packed is not None
    stored = codec.parse(packed.raw)
    assert stored is not None
    tier.keep(mark, codec, stored, packed.raw, 1.0)


def found(
    tier: LocalTier, entry: str = "product:i1", tags: tuple[str, ...] = (),
    codec: Codec[Any] = TEXT,
) -> Any:  # fmt: skip  # noqa: ANN401
    slot = tier.find(codec, Wanted(entry, tags))
    return NOT_KEPT if slot is None else slot.served()


def test_what_is_kept_is_served(tier: LocalTier) -> None:
    keep(tier, "Rolls")

    assert found(tier) == "Rolls"
    assert found(tier, "product:i2") is NOT_KEPT
    assert tier.hits == 1


def test_absence_is_kept_too(tier: LocalTier) -> None:
    keep(tier, None)

    assert found(tier) is None


def test_another_type_or_other_tags_are_not_served(tier: LocalTier) -> None:
    keep(tier, "Rolls", tags=("offer",))

    assert found(tier, tags=()) is NOT_KEPT
    assert found(tier, tags=("offer",), codec=LIST) is NOT_KEPT
    assert found(tier, tags=("offer",)) == "Rolls"


def test_one_caller_cannot_spoil_what_another_is_given(tier: LocalTier) -> None:
    keep(tier, [1, 2], codec=LIST)

    found(tier, codec=LIST).append(3)
    assert found(tier, codec=LIST) == [1, 2]


def test_what_nobody_can_change_is_decoded_once(tier: LocalTier) -> None:
    keep(tier, "Rolls")

    assert found(tier) is found(tier)


def test_plain_data_is_shared_only_if_it_is_an_atom(tier: LocalTier) -> None:
    plain: Codec[Any] = Codec(Any)
    keep(tier, {"name": ["Rolls"]}, codec=plain)
    keep(tier, "Eggs", entry="product:i2", codec=plain)

    found(tier, codec=plain)["name"].append("spoilt")
    assert found(tier, codec=plain) == {"name": ["Rolls"]}
    assert found(tier, "product:i2", codec=plain) == "Eggs"


def test_news_that_overtook_a_fetched_value_leave_nothing_of_it(tier: LocalTier) -> None:
    mark = tier.expect(Wanted("product:i1"), STANDING)
    tier.drop(["product:i1"], [])
    keep(tier, "old", mark=mark)

    assert found(tier) is NOT_KEPT
    assert tier.count == 0


def test_so_it_is_for_news_of_a_tag(tier: LocalTier) -> None:
    wanted = Wanted("product:i1", ("offer",))
    mark = tier.expect(wanted, STANDING)
    tier.drop([], ["offer"])
    keep(tier, "old", tags=wanted.tags, mark=mark)

    assert found(tier, tags=wanted.tags) is NOT_KEPT


@pytest.mark.parametrize("happens", [LocalTier.clear, LocalTier.closed, LocalTier.lost])
def test_so_it_is_when_everything_is_forgotten_meanwhile(
    tier: LocalTier, happens: Callable[[LocalTier], None]
) -> None:
    keep(tier, "old", entry="product:i2")
    mark = tier.expect(Wanted("product:i1"), STANDING)
    happens(tier)
    tier.opened(STANDING, monotonic() + 60)
    tier.tracked("server", tier.prefixes, monotonic() + 60)
    keep(tier, "old", mark=mark)

    assert found(tier) is found(tier, "product:i2") is NOT_KEPT
    assert tier.bytes_used == 0


def test_fetches_at_once_share_a_mark_so_that_one_is_kept(tier: LocalTier) -> None:
    first = tier.expect(Wanted("product:i1"), STANDING)
    second = tier.expect(Wanted("product:i1"), STANDING)
    keep(tier, "Rolls", mark=first)
    assert found(tier) == "Rolls"

    keep(tier, "Rolls", mark=second)
    assert found(tier) == "Rolls"


def test_who_finds_nothing_takes_the_mark_away(tier: LocalTier) -> None:
    mark = tier.expect(Wanted("product:i1", ("offer",)), STANDING)
    assert mark is not None
    tier.give_up(mark)

    assert (tier.count, tier.bytes_used) == (0, 0)


def test_a_tag_takes_away_what_depends_on_it_and_nothing_else(tier: LocalTier) -> None:
    keep(tier, "a", entry="product:i1", tags=("offer", "shop"))
    keep(tier, "b", entry="product:i2", tags=("offer",))
    keep(tier, "c", entry="product:i3", tags=("shop",))
    tier.drop([], ["offer"])

    assert found(tier, "product:i1", ("offer", "shop")) is NOT_KEPT
    assert found(tier, "product:i2", ("offer",)) is NOT_KEPT
    assert found(tier, "product:i3", ("shop",)) == "c"
    tier.drop(["product:i3"], [])
    assert tier.bytes_used == 0


def test_a_writer_takes_it_away_from_every_cache_of_the_process() -> None:
    tiers = [opened(), opened(name="offer")]
    for tier in tiers:
        keep(tier, "old", tags=("offer",))
    forget_in_process((), ["offer"])

    assert [tier.count for tier in tiers] == [0, 0]


def test_nothing_is_served_unless_the_server_tells_and_the_gate_is_open() -> None:
    now = monotonic()
    tier = LocalTier("product", POLICY, lambda _: None)
    assert tier.expect(Wanted("product:i1"), STANDING) is None
    tier.opened(STANDING, now + 60)
    assert tier.expect(Wanted("product:i1"), STANDING) is None
    tier.tracked("server", frozenset({"shop:1:value:{other:"}), now + 60)
    assert tier.expect(Wanted("product:i1"), STANDING) is None
    tier.tracked("another server", tier.prefixes, now + 60)
    assert tier.expect(Wanted("product:i1"), STANDING) is None
    tier.tracked("server", tier.prefixes, now)
    assert tier.expect(Wanted("product:i1"), STANDING) is None
    tier.tracked("server", tier.prefixes, now + 60)
    assert tier.expect(Wanted("product:i1"), Standing("shop:0:", "server")) is None

    keep(tier, "Rolls")
    tier.tracked("server", tier.prefixes, now)
    assert found(tier) is NOT_KEPT


def test_another_generation_or_server_finds_nothing() -> None:
    for another in (Standing("shop:2:", "server"), Standing("shop:1:", "another")):
        tier = opened()
        keep(tier, "old")
        tier.opened(another, monotonic() + 60)
        tier.tracked(another.server, tier.prefixes, monotonic() + 60)

        assert found(tier) is NOT_KEPT


def test_what_is_past_its_time_is_not_served(tier: LocalTier) -> None:
    raw = msgspec.msgpack.encode("old")
    mark = tier.expect(Wanted("product:i1"), STANDING)
    assert mark is not None
    tier.keep(mark, TEXT, Stored("old", int(time() * 1000) - 1, 0), b"0" * 16 + raw, 1.0)

    assert found(tier) is NOT_KEPT


def test_arguments_lead_to_what_is_kept_if_they_are_of_the_same_types(tier: LocalTier) -> None:
    tier.take_calls(TEXT)
    keep(tier, "Rolls")
    tier.name_call((1,), "product:i1")

    assert tier.served((1,)) == "Rolls"
    others: list[tuple[Any, ...]] = [(True,), (1.0,), ("1",), (2,), (), ([],), (1, 2)]
    for other in others:
        assert tier.served(other) is NOT_KEPT
    tier.drop(["product:i1"], ())
    assert tier.served((1,)) is NOT_KEPT


def test_arguments_that_equal_others_do_not_push_these_out(tier: LocalTier) -> None:
    tier.take_calls(TEXT)
    for entry, call in (("product:i1", (1,)), ("product:T", (True,)), ("product:N", (1.0,))):
        keep(tier, str(call), entry=entry)
        tier.name_call(call, entry)

    assert tier.served((1,)) == "(1,)"
    assert tier.served((True,)) is NOT_KEPT
    tier.drop(["product:T", "product:i1", "product:N"], ())
    assert tier.bytes_used == 0


def test_arguments_do_not_lead_to_values_of_another_type(tier: LocalTier) -> None:
    tier.take_calls(LIST)
    keep(tier, "Rolls")
    tier.name_call((1,), "product:i1")

    assert tier.served((1,)) is NOT_KEPT


def fill(tier: LocalTier, values: Iterator[tuple[Any, Codec[Any]]]) -> None:
    for number, (value, codec) in enumerate(values):
        entry = f"product:i{number}"
        tier.take_calls(codec)
        keep(tier, value, entry=entry, tags=(f"offer={number // 3}",), codec=codec)
        tier.name_call((number + 1_000,), entry)


class Page(msgspec.Struct, frozen=True):
    title: str
    lines: tuple[int, ...]


PAGE: Codec[Page] = Codec(Page)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: (f"{n:0200}", TEXT),
        lambda n: ([n] * 50, LIST),
        lambda _: (None, TEXT),
        # More numbers than Python keeps empty tuples for.
        lambda n: (Page(f"{n:050}", tuple(range(n, n + 30))), PAGE),
    ],
    ids=["text", "list", "absence", "struct"],
)
def test_no_more_memory_is_used_than_was_allowed(make: Callable[[int], Any]) -> None:
    allowed = 400_000
    tier = opened(CachePolicy(jitter=0, local_bytes=allowed))
    fill(tier, (make(number) for number in range(20)))  # what is made once
    tier.clear()

    tracemalloc.start()
    try:
        fill(tier, (make(number) for number in range(1_000)))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert allowed * 0.95 < tier.bytes_used <= allowed
    assert allowed * 0.4 < used < allowed * 1.1


def test_what_is_read_stays_and_what_is_not_goes() -> None:
    tier = opened(CachePolicy(jitter=0, local_bytes=40_000))
    keep(tier, "hot", entry="product:hot")
    for number in range(1_000):
        keep(tier, "cold", entry=f"product:i{number}")
        assert found(tier, "product:hot") == "hot"

    assert found(tier, "product:i0") is NOT_KEPT
    assert found(tier, "product:i999") == "cold"


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    tier = opened(CachePolicy(jitter=0, local_bytes=10_000))
    keep(tier, "small", entry="product:small")
    keep(tier, "x" * 10_000)

    assert found(tier) is NOT_KEPT
    assert found(tier, "product:small") == "small"


def test_marks_of_fetches_that_never_end_do_not_fill_it() -> None:
    tier = opened(CachePolicy(jitter=0, local_bytes=10_000))
    for number in range(1_000):
        tier.expect(Wanted(f"product:i{number}"), STANDING)

    assert tier.bytes_used <= 10_000


def test_threads_that_read_keep_and_drop_at_once_leave_it_whole() -> None:
    tier = opened(CachePolicy(jitter=0, local_bytes=30_000))
    tier.take_calls(TEXT)
    entries = [f"product:i{number}" for number in range(40)]

    def work(seed: int) -> None:
        for turn in range(400):
            number = (seed * 7 + turn * 13) % 40
            entry, tags = entries[number], (f"offer={number % 5}",)
            if found(tier, entry, tags) is NOT_KEPT:
                keep(tier, f"value {number}", entry=entry, tags=tags)
                tier.name_call((number,), entry)
            assert tier.served((number,)) in {f"value {number}", NOT_KEPT}
            if turn % 11 == 0:
                tier.drop([entries[turn % 40]], [f"offer={turn % 5}"])
            if turn % 97 == 0:
                tier.clear()

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result()

    tier.drop(entries, ())
    assert (tier.count, tier.bytes_used) == (0, 0)
    assert all(tier.served((number,)) is NOT_KEPT for number in range(40))


@dataclass(frozen=True)
class Frozen:
    number: int
    other: "Frozen | None" = None


@dataclass(frozen=True)
class FrozenButNotAll:
    numbers: list[int]


@dataclass
class Thawed:
    number: int


class Tree(msgspec.Struct, frozen=True):
    leaf: Frozen | None
    branches: tuple["Tree", ...] = ()


class Soft(msgspec.Struct):
    number: int


class Pair(NamedTuple):
    left: int
    right: Frozen


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    "value_type",
    [
        int,
        str | None,
        tuple[int, str],
        tuple[Frozen, ...],
        frozenset[int],
        Frozen,
        Tree,
        Pair,
        Colour,
    ],
)
def test_these_types_are_shared(value_type: object) -> None:
    assert is_immutable(value_type)


@pytest.mark.parametrize(
    "value_type",
    [Any, object, list[int], dict[str, int], tuple[list[int], ...], FrozenButNotAll, Thawed, Soft,
     Frozen | Soft, bytearray],
)  # fmt: skip
def test_these_types_are_decoded_for_each_caller(value_type: object) -> None:
    assert not is_immutable(value_type)
