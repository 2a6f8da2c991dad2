"""Each benchmark runs, at a tiny size; how fast is nobody's business here."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest

from benchmarks.bench_view_growth import Case
from benchmarks.delays import delays_as_json, measure_delays
from benchmarks.interleaving import Claim, as_json, measure, ratios
from datapatterns import DataLayer
from datapatterns.embedded import EmbeddedServers
from datapatterns.testing import Databases

pytest.importorskip("eventsourcing")

from benchmarks.__main__ import stages

TINY: dict[str, dict[str, object]] = {
    "atomic": {"TRANSACTIONS": 2, "CASES": (1, 2)},
    "index_over_shards": {"TRANSACTIONS": 2, "CASES": (1, 3)},
    "index_shards": {"OPERATIONS": 2, "ROWS": 200, "MANY": 5},
    "append": {"OPERATIONS": 16, "CASES": (1,)},
    "append_batch": {"EVENTS": 40, "CASES": ((2, 10),)},
    "append_in_transaction": {"OPERATIONS": 2},
    "fence": {"OPERATIONS": 8, "CASES": ((2, False), (2, True))},
    "growth": {"LARGE_EVENTS": 2_000, "SMALL_EVENTS": 20, "OPERATIONS": 2},
    "import": {"EVENTS": 40, "STREAMS": 4},
    "index_backfill": {"ROWS": 200, "CHUNK_ROWS": 100},
    "index_build": {"ROWS": 300, "CHUNK_ROWS": 40},
    "index_lookup": {"ROWS": 2_000, "KEYS": 200, "LOOKUPS": 20},
    "index_write": {
        "ROWS": 200,
        "STATEMENTS": 6,
        "COMMITS": 3,
        "CASES": ((1, True), (3, False)),
    },
    "inline": {"OPERATIONS": 2},
    "load": {"EVENTS": 40, "LOADS": 2, "CASES": ((40, False), (40, True))},
    "load_watch": {"READS": 2, "COUNTS": 10, "KEYS": 20},
    "log": {"EVENTS": 40, "STREAMS": 4, "PAGE_EVENTS": 7},
    "move": {"ROWS": 200, "CASES": ("move",)},
    "references": {"TRANSACTIONS": 2, "CASES": ("one shard", "two shards")},
    "promote": {"EVENTS": 1_000, "READERS": 2},
    "projection_rebuild": {"EVENTS": 1_020, "PAGE_EVENTS": 400},
    "projection_fold": {"EVENTS": 1_020, "PAGE_EVENTS": 400, "RIVAL_EVENTS": 4},
    "projection_set": {"EVENTS": 2_000, "PAGE_EVENTS": 300},
    "routing": {"OPERATIONS": 4, "KEYS": 4},
    "scatter": {"ROWS": 400, "ASKED": 2, "SECONDS": 0.01},
    "verify": {"EVENTS": 1_000, "PAGE_EVENTS": 300, "CASES": ("equal", "one row differs")},
    "view_growth": {"ROWS": 400, "PRODUCTS": 40, "CASES": (Case(10, 5, 3), Case(10, 5, 1, "max"))},
    "view_refresh": {"ROWS": 2_000, "GROUPS": 20, "CHANGES": 10, "READS": 1},
}

MAKE_DATABASES = {
    "references",
    "atomic",
    "fence",
    "growth",
    "index_build",
    "index_over_shards",
    "index_shards",
    "move",
    "routing",
    "scatter",
}  # under names of their own: they need a server each


@pytest.fixture(scope="module")
def on_one_server() -> Iterator[Databases]:
    with EmbeddedServers(durable=False) as servers, Databases(servers.postgres().url) as databases:
        yield databases


@pytest.fixture
def one_server(on_one_server: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each benchmark a database where it would start servers, which takes far longer."""

    @contextmanager
    def embedded() -> Iterator[DataLayer]:
        with on_one_server.lend() as url, DataLayer(url) as layer:
            yield layer

    monkeypatch.setattr(DataLayer, "embedded", embedded)


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name not in MAKE_DATABASES:
        request.getfixturevalue("one_server")
    module = import_module(f"benchmarks.bench_{name}")
    for constant, tiny in TINY[name].items():
        monkeypatch.setattr(module, constant, tiny)

    for stage in stages(module):
        with stage() as claim:
            assert isinstance(claim, Claim)
            measured = measure(claim, rounds=1)

        assert len(ratios(measured)) == len(claim.contestants) - 1
        assert all(rate > 0 for each in measured for rate in each.rates)
        assert as_json(claim, measured)["title"] == claim.title


@pytest.mark.usefixtures("one_server")
def test_a_benchmark_of_delays_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("benchmarks.bench_projection_latency")
    monkeypatch.setattr(module, "WRITES", 5)

    with module.claim() as claim:
        delayed = measure_delays(claim, rounds=1)

    assert [each.role for each in delayed] == ["ours", "rival"]
    assert all(0 <= each.p50s[0] <= each.p99s[0] for each in delayed)
    assert delays_as_json(claim, delayed)["title"] == claim.title


@pytest.mark.usefixtures("one_server")
def test_the_benchmark_of_who_waits_for_verify_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("benchmarks.bench_verify")
    monkeypatch.setattr(module, "EVENTS", 500)

    with module.claim("held") as claim:
        delayed = measure_delays(claim, rounds=1)

    assert [each.role for each in delayed] == ["ours", "rival"]
    assert all(each.p99s[0] > 0 for each in delayed)


def test_the_benchmark_of_who_waits_for_a_move_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("benchmarks.bench_move")
    monkeypatch.setattr(module, "PAUSED_ROWS", 100)
    monkeypatch.setattr(module, "MOVES", 1)

    with module.claim("pause") as claim:
        delayed = measure_delays(claim, rounds=1)

    assert [each.role for each in delayed] == ["ours", "limit"]
    assert all(each.p99s[0] > 0 for each in delayed)
