"""Where keys lie is the same in every process, and in every version: rows lie there."""

import json
import subprocess
import sys
from uuid import UUID

import pytest

from datapatterns.sharding import (
    Composite,
    CompositeKey,
    Directory,
    Hash,
    Jump,
    Ketama,
    KeyPart,
    ListMap,
    Modulo,
    Range,
    Rendezvous,
    ShardingStrategy,
)

NUMBERS: list[KeyPart] = [0, 1, -1, 7, 42, 2**31, -(2**63), 2**63 - 1]
TEXTS: list[KeyPart] = ["", "a", "milk", "Ärger", "日本", "😀", "x" * 25]
UUIDS: list[KeyPart] = [
    UUID(int=0),
    UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    UUID(int=2**128 - 1),
]
NODES = ["10.0.0.1:11211", "10.0.0.2:11211", "10.0.0.3:11211"]
COMPOSITES: list[CompositeKey] = [("eu", 7), ("us", 42), ("us", -1)]

STRATEGIES: list[tuple[ShardingStrategy, list[KeyPart]]] = [
    (Hash(buckets=1024), NUMBERS),
    (Hash(buckets=1024), TEXTS),
    (Hash(buckets=1024), UUIDS),
    (Hash(buckets=4), NUMBERS),
    (Modulo(5), NUMBERS),
    (Range([0, 7, 100]), NUMBERS),
    (Range(["a", "n", "日"]), TEXTS),
    (Range([UUID(int=1)]), UUIDS),
    (Range([5], [3, 1]).split(9, bucket=4), NUMBERS),
    (ListMap({"milk": 1, "a": 0}, default=3), TEXTS),
    (Directory(Hash(buckets=8), {7: 8, 42: 3}), NUMBERS),
    (Directory(Range([5]), {7: 9}), NUMBERS),
]


def placed() -> dict[str, list[object]]:
    """Return what every strategy says of its keys."""
    found: dict[str, list[object]] = {}
    for strategy, keys in STRATEGIES:
        name = f"{strategy!r} {type(keys[0]).__name__}"
        found[name] = [strategy.bucket(key) for key in keys]
    composite = Composite(ListMap({"eu": 0, "us": 1}), Hash(buckets=16))
    found["composite"] = [composite.bucket(key) for key in COMPOSITES]
    found["jump"] = [Jump(10).node(key) for key in NUMBERS]
    found["rendezvous"] = [Rendezvous(NODES).node(key) for key in (*NUMBERS, *TEXTS)]
    found["ketama"] = [Ketama(NODES).node(key) for key in (*NUMBERS, *TEXTS)]
    return found


GOLDEN: dict[str, list[object]] = {
    "Hash(buckets=1024) int": [432, 952, 933, 279, 610, 630, 383, 630],
    "Hash(buckets=1024) str": [166, 862, 958, 317, 547, 369, 315],
    "Hash(buckets=1024) UUID": [933, 998, 385],
    "Hash(buckets=4) int": [0, 0, 1, 3, 2, 2, 3, 2],
    "Modulo(buckets=5) int": [0, 1, 4, 2, 2, 3, 2, 2],
    "Range(bounds=(0, 7, 100), numbers=(0, 1, 2, 3)) int": [1, 1, 0, 2, 2, 3, 0, 3],
    "Range(bounds=('a', 'n', '日'), numbers=(0, 1, 2, 3)) str": [0, 1, 1, 2, 3, 3, 2],
    "Range(bounds=(UUID('00000000-0000-0000-0000-000000000001'),), numbers=(0, 1)) UUID": [0, 1, 1],
    "Range(bounds=(5, 9), numbers=(3, 1, 4)) int": [3, 3, 3, 1, 4, 4, 3, 4],
    "ListMap(entries=(('a', 0), ('milk', 1)), default=3) str": [3, 0, 1, 3, 3, 3, 3],
    "Directory(default=Hash(buckets=8), entries=((42, 3), (7, 8))) int": [0, 0, 5, 8, 3, 6, 7, 6],
    "Directory(default=Range(bounds=(5,), numbers=(0, 1)), entries=((7, 9),)) int": [
        0,
        0,
        0,
        9,
        1,
        1,
        0,
        1,
    ],
    "composite": [7, 18, 21],
    "jump": [0, 6, 9, 0, 2, 8, 5, 8],
    "rendezvous": [
        "10.0.0.1:11211",
        "10.0.0.2:11211",
        "10.0.0.1:11211",
        "10.0.0.1:11211",
        "10.0.0.2:11211",
        "10.0.0.3:11211",
        "10.0.0.3:11211",
        "10.0.0.1:11211",
        "10.0.0.2:11211",
        "10.0.0.2:11211",
        "10.0.0.1:11211",
        "10.0.0.3:11211",
        "10.0.0.1:11211",
        "10.0.0.2:11211",
        "10.0.0.1:11211",
    ],
    "ketama": [
        "10.0.0.1:11211",
        "10.0.0.3:11211",
        "10.0.0.2:11211",
        "10.0.0.1:11211",
        "10.0.0.1:11211",
        "10.0.0.3:11211",
        "10.0.0.1:11211",
        "10.0.0.2:11211",
        "10.0.0.2:11211",
        "10.0.0.3:11211",
        "10.0.0.3:11211",
        "10.0.0.1:11211",
        "10.0.0.1:11211",
        "10.0.0.2:11211",
        "10.0.0.3:11211",
    ],
}
"""Never to be changed: a strategy that says otherwise would not find what is stored."""


def test_keys_lie_where_they_have_always_lain() -> None:
    assert placed() == GOLDEN


@pytest.mark.parametrize("seed", ["0", "1"])
def test_other_processes_say_the_same(seed: str) -> None:
    code = (
        "import json; from tests.unit.test_golden_placements import placed;"
        "print(json.dumps(placed()))"
    )
    done = subprocess.run(  # noqa: S603 -- ours
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".:cli"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout) == GOLDEN
