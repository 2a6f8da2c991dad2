"""Lists behind a cache: the usual one is caught in its stale fill, the library's is not."""

from collections.abc import Iterator
from itertools import islice

import pytest
from redis import Redis
from sqlalchemy import Engine

from datapatterns.testing.histories import (
    HistoryEvent,
    ListWorkload,
    Recorder,
    check_history,
    run_list_append,
    verdict,
)
from datapatterns.testing.histories.workload import run_transaction
from tests.fixtures.caches import open_cache
from tests.fixtures.list_stores import CachedLists, NaivelyCachedLists, create_lists

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

ONE_AT_A_TIME = ListWorkload(lists=3, operations_max=1)


@pytest.fixture
def naive(engine: Engine, redis_client: Redis) -> NaivelyCachedLists:
    create_lists(engine)
    return NaivelyCachedLists(engine, redis_client)


@pytest.fixture
def cached(engine: Engine, redis_client: Redis) -> Iterator[CachedLists]:
    create_lists(engine)
    with open_cache(redis_client, engine) as cache:
        yield CachedLists(cache)


def written_while_it_is_loaded(lists: CachedLists | NaivelyCachedLists) -> list[HistoryEvent]:
    """Return a history in which an append is acknowledged between a load and its fill."""
    recorder = Recorder()
    writer, loader, reader = (recorder.client() for _ in range(3))
    appends = iter([1])

    def append() -> None:
        for value in appends:
            run_transaction(lists, lists.begin, writer, [("append", 7, value)])

    lists.while_loading = append
    for client in (loader, reader):
        run_transaction(lists, lists.begin, client, [("r", 7, None)])
    return recorder.history()


def test_a_fill_that_overtakes_an_invalidation_is_caught_as_a_stale_read(
    naive: NaivelyCachedLists,
) -> None:
    report = check_history(written_while_it_is_loaded(naive))

    assert "process 2" in report.anomalies["stale-read"][0].explanation


def test_the_cache_refuses_that_fill(cached: CachedLists) -> None:
    history = written_while_it_is_loaded(cached)

    assert not verdict(history, model="strict-serializable")
    assert history[-1].value == [("r", 7, [1])]


def test_lists_behind_the_cache_are_linearizable_in_one_process(cached: CachedLists) -> None:
    history = run_list_append(
        cached, cached.begin, transactions=islice(ONE_AT_A_TIME.transactions(seed=1), 400)
    )

    assert not verdict(history, model="strict-serializable")
