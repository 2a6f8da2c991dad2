"""Histories recorded while connections break: nothing acknowledged is lost, whatever else is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from itertools import count, islice

import pytest
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from datapatterns.testing import FaultProxy, PostgresFaults
from datapatterns.testing.faults import FaultProxyFactory
from datapatterns.testing.histories import (
    HistoryEvent,
    ListWorkload,
    check_set,
    run_list_append,
    verdict,
)
from tests.fixtures.list_stores import Arrays, create_lists, impatient

pytestmark = [pytest.mark.chaos, pytest.mark.postgres]

BUSY = ListWorkload(lists=4, operations_max=3)

Elements = set[tuple[int | str, object]]


@pytest.fixture
def proxy(engine: Engine, datapatterns_fault_proxy: FaultProxyFactory) -> FaultProxy[URL]:
    create_lists(engine)
    return datapatterns_fault_proxy(engine.url)


@pytest.fixture
def pool(proxy: FaultProxy[URL]) -> Iterator[Engine]:
    behind_proxy = impatient(proxy.url, isolation_level="SERIALIZABLE")
    yield behind_proxy
    behind_proxy.dispose()


def breaking(
    pool: Engine, fault: Callable[[int], object], *, every: int, until: int
) -> Callable[[], AbstractContextManager[Connection]]:
    """Return what begins transactions and brings about a fault before some of the first ones."""
    begun = count(1)

    def begin() -> AbstractContextManager[Connection]:
        number = next(begun)
        if number % every == 0 and number <= until:
            fault(number // every)
        return pool.begin()

    return begin


def appends(history: list[HistoryEvent], how: str) -> Elements:
    return {
        (key, value)
        for event in history
        if event.type == how
        for name, key, value in event.value or []
        if name == "append"
    }


def there_in_the_end(history: list[HistoryEvent]) -> Elements:
    reader = history[-1].process
    return {
        (key, value)
        for event in history
        if event.process == reader and event.type == "ok"
        for _, key, values in event.value or []
        if isinstance(values, list)
        for value in values
    }


def lost_or_resurrected(history: list[HistoryEvent]) -> dict[str, Elements]:
    return check_set(
        acknowledged=appends(history, "ok"),
        failed=appends(history, "fail"),
        final=there_in_the_end(history),
    )


def test_a_commit_whose_answer_is_lost_has_happened_or_not_and_breaks_nothing_else(
    proxy: FaultProxy[URL], pool: Engine
) -> None:
    traps = []

    def cut(number: int) -> None:
        lose = proxy.cut_next_reply_to if number % 2 else proxy.cut_before_request
        traps.append(lose("COMMIT"))

    def spring_the_rest() -> None:
        while not all(trap.has_fired for trap in traps):
            with suppress(DBAPIError), pool.begin() as conn:
                conn.exec_driver_sql("SELECT 1")

    history = run_list_append(
        Arrays(),
        breaking(pool, cut, every=6, until=180),
        transactions=islice(BUSY.transactions(seed=1), 180),
        clients=4,
        settle=spring_the_rest,
    )

    unknown, there = appends(history, "info"), there_in_the_end(history)
    assert unknown & there
    assert unknown - there
    assert lost_or_resurrected(history) == {}
    assert not verdict(history, model="strict-serializable")
    # Who takes an unknown outcome for a failure is found out.
    mistaken = [
        HistoryEvent(e.index, e.process, "fail" if e.type == "info" else e.type, e.value)
        for e in history
    ]
    assert "G1a" in verdict(mistaken, model="read-committed").anomalies


def test_killed_connections_lose_nothing_that_was_acknowledged(engine: Engine) -> None:
    create_lists(engine)
    pool = impatient(engine.url, isolation_level="SERIALIZABLE")

    with PostgresFaults(engine.url) as faults:
        history = run_list_append(
            Arrays(),
            breaking(pool, lambda _: faults.kill_connections(), every=25, until=150),
            transactions=islice(BUSY.transactions(seed=1), 150),
            clients=4,
            settle=pool.dispose,
        )
    pool.dispose()

    assert any(event.type != "ok" for event in history if event.type != "invoke")
    assert lost_or_resurrected(history) == {}
    assert not verdict(history, model="strict-serializable")
