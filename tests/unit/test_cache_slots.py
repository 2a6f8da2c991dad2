"""What is said about several entries falls into what would be said about each alone."""

import re

import pytest
from redis.crc import key_slot

from datapatterns.cache_aside.lua_scripts import (
    KEEP_MILESTONES,
    SCRIPTS,
    STAMP,
    SURVEY,
    Command,
)
from datapatterns.cache_aside.milestones import WRITERS_MS
from datapatterns.cache_aside.policy import CachePolicy
from datapatterns.cache_aside.redis_commands import (
    RedisStep,
    command_for,
    invalidations_of,
)
from datapatterns.cache_aside.slots import (
    SHAPES,
    SLOTS,
    SlotMap,
    joined,
    one_by_one,
    parts_of,
    slot_of,
)
from datapatterns.cache_aside.steps import (
    Acquire,
    Ask,
    CacheSilence,
    Fill,
    Filling,
    Release,
    Stamp,
)
from datapatterns.change_log.snapshots import Xid

POLICY = CachePolicy()
PREFIX = "shop:0123:"


def as_it_is(address: tuple[str, int]) -> tuple[str, int]:
    return address


def command_of(step: RedisStep) -> Command:
    return command_for(step, prefix=PREFIX, policy=POLICY)


def invalidations(*names: str, tags: bool) -> list[Command]:
    entries, tagged = ((), names) if tags else (names, ())
    return invalidations_of(entries, tagged, prefix=PREFIX, xid=Xid(7))


@pytest.mark.parametrize(
    ("together", "alone"),
    [
        (
            Acquire((Ask("a", b"1"), Ask("b"), Ask("c", b"3")), "token"),
            [Acquire((ask,), "token") for ask in (Ask("a", b"1"), Ask("b"), Ask("c", b"3"))],
        ),
        (
            Fill((Filling("a", b"1", 10), Filling("b", b"2", 20)), "token"),
            [Fill((each,), "token") for each in (Filling("a", b"1", 10), Filling("b", b"2", 20))],
        ),
        (Release(("a", "b"), "token"), [Release(("a",), "token"), Release(("b",), "token")]),
    ],
    ids=["Acquire", "Fill", "Release"],
)
def test_a_step_falls_into_its_entries(together: RedisStep, alone: list[RedisStep]) -> None:
    parts = parts_of(command_of(together))

    assert [part.command for part in parts] == [command_of(each) for each in alone]


def test_stamps_are_drawn_one_by_one() -> None:
    command = command_of(Stamp(("a", "b")))

    parts = [part.command for part in parts_of(command)]

    lengths = [len(command_of(Stamp((tag,)))) for tag in "ab"]
    assert [len(part) for part in parts] == lengths
    assert [part[-1] for part in parts] == [*command[-2:]]
    assert all(part[1] == STAMP.sha for part in parts)


@pytest.mark.parametrize("tags", [False, True], ids=["entries", "tags"])
def test_an_invalidation_falls_into_its_entries(*, tags: bool) -> None:
    [command] = invalidations("a", "b", tags=tags)

    parts = [part.command for part in parts_of(command)]

    assert parts == [*invalidations("a", tags=tags), *invalidations("b", tags=tags)]


def test_all_keys_of_a_part_are_in_its_slot() -> None:
    steps: list[RedisStep] = [
        Acquire((Ask("a"), Ask("b")), "t"),
        Stamp(("a", "b")),
        Release(("a", "b"), "t"),
    ]
    for command in [*map(command_of, steps), *invalidations("a", "b", tags=True)]:
        for part in parts_of(command):
            keys = part.command[3 : 3 + int(part.command[2])]
            assert {key_slot(str(key).encode()) for key in keys} == {part.slot}


def test_each_script_says_how_it_falls_into_parts() -> None:
    # Nobody asks a cluster what it has lost.
    for sha in SCRIPTS.keys() - {SURVEY.sha, KEEP_MILESTONES.sha}:
        script = SCRIPTS[sha]
        each = re.search(r"#KEYS, (\d)", script.source)
        assert SHAPES[sha].keys == (int(each[1]) if each else 1)


@pytest.mark.parametrize("key", ["plain", "a{b}c", "a{}c", "a{b", "}{b}{c}", "ä{ö}", ""])
def test_a_key_is_in_the_slot_that_the_cluster_says(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


def test_replies_are_joined_as_one_would_be() -> None:
    command = command_of(Acquire((Ask("a"), Ask("b")), "token"))
    [invalidation] = invalidations("a", "b", tags=False)

    assert joined(command, [[[2]], [[3, 50]]]) == [[2], [3, 50]]
    assert joined(invalidation, [1, 1]) == 2
    assert joined(("MGET", "a", "b"), [b"1", None]) == [b"1", None]
    with pytest.raises(CacheSilence):
        joined(command, [[[2]], 7])


def test_one_by_one_the_lease_goes_before_the_value() -> None:
    [command] = invalidations("a", tags=False)

    commands = one_by_one(command)

    assert commands[0][3:] == (f"{PREFIX}writers:{{a}}", WRITERS_MS, "7")
    assert commands[1:] == [
        ("UNLINK", f"{PREFIX}lease:{{a}}"),
        ("UNLINK", f"{PREFIX}value:{{a}}"),
        ("ZREM", f"{PREFIX}fences:{{a}}", "7"),
    ]
    [of_tag] = invalidations("a:writers:{}", tags=True)
    assert [each[1] for each in one_by_one(of_tag)[1:]] == [
        f"{PREFIX}stamp:{{tag:a:writers:{{}}}}",
        f"{PREFIX}fences:{{tag:a:writers:{{}}}}",
    ]
    assert one_by_one(command_of(Release(("a",), "token"))) == []


def slots(*ranges: object) -> SlotMap:
    return SlotMap.of([*ranges], ("asked", 1), as_it_is)


def test_a_map_knows_the_owner_of_each_slot() -> None:
    known = slots(
        [0, 99, [b"one", 1, b"id", []], [b"replica", 3, b"id"]],
        [100, SLOTS - 1, [None, 2, b"id"]],
    )

    assert (known.owners[99], known.owners[100]) == (("one", 1), ("asked", 2))
    assert known.nodes == [("asked", 2), ("one", 1)]
    tags = known.tags()
    assert {known.owners[slot_of(f"shop:server{tag}")] for tag in tags.values()} == set(tags)


@pytest.mark.parametrize(
    "reply",
    [
        [[0, 99, [b"one", 1, b"id"]]],
        [[0, SLOTS - 1, [b"one"]]],
        [],
        b"OK",
    ],
    ids=["gap", "no port", "nothing", "no list"],
)
def test_a_map_with_gaps_is_none(reply: object) -> None:
    with pytest.raises(CacheSilence):
        SlotMap.of(reply, ("asked", 1), as_it_is)
