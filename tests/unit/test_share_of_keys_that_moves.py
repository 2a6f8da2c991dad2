"""The table of what moves when a shard is added, as the docs have it, is what happens."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from datapatterns.sharding import (
    Hash,
    Jump,
    Ketama,
    KeyPart,
    Modulo,
    Range,
    Rendezvous,
    ShardingStrategy,
    plan_moves,
)
from datapatterns.sharding.maps.shard_map import spread_evenly

PAGE = Path(__file__).parents[2] / "docs/how-to/choose-a-sharding-strategy.md"
KEYS: Sequence[KeyPart] = range(20_000)
GROWTHS = [(4, 5), (8, 9), (32, 33)]
Placed = Callable[[KeyPart], object]


def shards(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def in_buckets(strategy: ShardingStrategy) -> Callable[[int, int], tuple[Placed, Placed]]:
    """Buckets are moved by the plan that evens shards out by what the buckets hold."""

    def placed(before: int, after: int) -> tuple[Placed, Placed]:
        owners = dict(enumerate(spread_evenly(strategy.buckets, shards(before))))
        costs = dict.fromkeys(owners, 0.0)
        for key in KEYS:
            costs[strategy.bucket(key)] += 1
        moves = plan_moves(owners, costs, dict.fromkeys(shards(after), 1.0), threshold=0.02)
        moved = owners | {move.bucket: move.target for move in moves}
        return (
            lambda key: owners[strategy.bucket(key)],
            lambda key: moved[strategy.bucket(key)],
        )

    return placed


def by_nodes(placed_on: Callable[[int], Placed]) -> Callable[[int, int], tuple[Placed, Placed]]:
    return lambda before, after: (placed_on(before), placed_on(after))


WAYS: dict[str, Callable[[int, int], tuple[Placed, Placed]]] = {
    "`Hash`, `ListMap`, `Directory`: 1,024 buckets": in_buckets(Hash(buckets=1024)),
    "`Range`: 500 equal ranges": in_buckets(Range(range(40, 20_000, 40))),
    "`Modulo`": by_nodes(lambda count: Modulo(count).bucket),
    "`Jump`": by_nodes(lambda count: Jump(count).node),
    "`Rendezvous`": by_nodes(lambda count: Rendezvous(shards(count)).node),
    "`Ketama`": by_nodes(lambda count: Ketama(shards(count)).node),
}


def share(way: str, before: int, after: int) -> float:
    old, new = WAYS[way](before, after)
    return sum(old(key) != new(key) for key in KEYS) / len(KEYS)


def table() -> str:
    heads = [f"{before} → {after}, ideal {1 / after:.1%}" for before, after in GROWTHS]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- |" * len(GROWTHS)]
    for way in WAYS:
        shares = " | ".join(f"{share(way, *growth):.1%}" for growth in GROWTHS)
        lines.append(f"| {way} | {shares} |")
    return "\n".join(lines)


def test_the_docs_show_what_moves() -> None:
    assert table() in PAGE.read_text()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "`Modulo`"])
def test_all_but_modulo_move_little_more_than_what_the_new_shard_holds(way: str) -> None:
    for before, after in GROWTHS:
        assert share(way, before, after) <= 1.25 / after
