"""Random transactions on arrays: what each isolation level of PostgreSQL shows, and hides."""

from collections.abc import Mapping
from itertools import islice

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine.interfaces import IsolationLevel

from datapatterns.testing.histories import (
    HistoryEvent,
    ListStore,
    ListWorkload,
    Witness,
    check_history,
    run_list_append,
    verdict,
)
from tests.fixtures.list_stores import Arrays, ReadModifyWrite, create_lists, impatient

BUSY = ListWorkload(lists=3, appends_for_each_list=24)
"""Few lists: clients are in each other's way."""


def run(
    engine: Engine, store: ListStore[Connection], level: IsolationLevel, *, seed: int = 1
) -> list[HistoryEvent]:
    """Return the history of 200 transactions of 8 clients."""
    with engine.begin() as conn:
        conn.execute(text("DROP TABLE IF EXISTS list"))
    create_lists(engine)
    at_level = impatient(engine.url, isolation_level=level)
    try:
        return run_list_append(
            store, at_level.begin, transactions=islice(BUSY.transactions(seed=seed), 200)
        )
    finally:
        at_level.dispose()


@pytest.mark.postgres
def test_serializable_transactions_are_serializable_even_if_the_application_appends(
    engine: Engine,
) -> None:
    history = run(engine, ReadModifyWrite(), "SERIALIZABLE")

    # In real time, too: there is one server and no replica.
    assert not verdict(history, model="strict-serializable")


@pytest.mark.postgres
def test_repeatable_read_shows_nothing_that_snapshot_isolation_forbids(engine: Engine) -> None:
    history = run(engine, ReadModifyWrite(), "REPEATABLE READ")

    assert not verdict(history, model="strong-snapshot-isolation")


@pytest.mark.postgres
def test_write_skew_under_repeatable_read_is_caught(engine: Engine) -> None:
    histories = (run(engine, Arrays(), "REPEATABLE READ", seed=seed) for seed in range(10))

    assert any("G2-item" in check_history(history).anomalies for history in histories)


@pytest.mark.postgres
def test_read_committed_keeps_its_promise_and_is_caught_at_no_more(engine: Engine) -> None:
    history = run(engine, Arrays(), "READ COMMITTED")

    assert not verdict(history, model="read-committed")
    found = set(check_history(history).anomalies)
    assert {"internal", "lost-update", "G-single"} & found
    assert not {"stale-read", "read-your-writes-violation", "non-monotonic-read"} & found


@pytest.mark.postgres
def test_an_application_that_loads_and_saves_under_read_committed_is_caught(
    engine: Engine,
) -> None:
    wanted = {"lost-update", "stale-read", "incompatible-order"}
    found: Mapping[str, tuple[Witness, ...]] = {}
    for seed in range(20):  # which of them happen, is a matter of luck
        found = check_history(run(engine, ReadModifyWrite(), "READ COMMITTED", seed=seed)).anomalies
        if wanted <= set(found):
            break

    assert wanted <= set(found)
    assert "appended" in found["stale-read"][0].explanation
