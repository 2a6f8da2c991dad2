"""Event streams and the read models made of them, as lists."""

from collections.abc import Iterator
from itertools import islice

import pytest
from sqlalchemy import Engine

from datapatterns.testing.histories import (
    ListWorkload,
    Recorder,
    check_history,
    run_list_append,
    verdict,
)
from datapatterns.testing.histories.workload import run_transaction
from tests.fixtures.list_stores import (
    EventStreams,
    PatientProjectedLists,
    ProjectedLists,
    impatient,
)

pytestmark = pytest.mark.postgres

ONE_AT_A_TIME = ListWorkload(lists=3, operations_max=1)
SEVERAL = ListWorkload(lists=3, operations_max=3)


@pytest.fixture
def pool(engine: Engine) -> Iterator[Engine]:
    impatient_engine = impatient(engine.url)
    yield impatient_engine
    impatient_engine.dispose()


def test_single_appends_and_reads_of_streams_are_strictly_serializable(pool: Engine) -> None:
    history = run_list_append(
        EventStreams(),
        pool.begin,
        transactions=islice(ONE_AT_A_TIME.transactions(seed=1), 300),
    )

    assert not verdict(history, model="strict-serializable")


def test_transactions_over_several_streams_keep_what_read_committed_promises(
    pool: Engine,
) -> None:
    history = run_list_append(
        EventStreams(), pool.begin, transactions=islice(SEVERAL.transactions(seed=1), 200)
    )

    assert not verdict(history, model="read-committed")
    late = {"stale-read", "read-your-writes-violation", "non-monotonic-read"}
    assert not late & set(check_history(history).anomalies)


def test_transactions_over_several_streams_are_serializable_where_the_server_makes_them(
    engine: Engine,
) -> None:
    pool = impatient(engine.url, isolation_level="SERIALIZABLE")
    history = run_list_append(
        EventStreams(), pool.begin, transactions=islice(SEVERAL.transactions(seed=1), 200)
    )
    pool.dispose()

    assert not verdict(history, model="strict-serializable")


def test_a_read_model_behind_the_log_is_stale_and_never_wrong(pool: Engine) -> None:
    lists = ProjectedLists(pool)
    recorder = Recorder()
    writer, reader = recorder.client(), recorder.client()

    run_transaction(lists, pool.begin, writer, [("append", 1, 1)])
    run_transaction(lists, pool.begin, reader, [("r", 1, None)])
    lists.catch_up()
    run_transaction(lists, pool.begin, reader, [("r", 1, None)])

    found = check_history(recorder.history()).anomalies
    assert "stale-read" in found
    assert not verdict(recorder.history(), model="serializable")


def test_a_read_model_that_caught_up_has_every_event_in_its_place(pool: Engine) -> None:
    only_appends = ListWorkload(lists=3, read_share=0)
    lists = ProjectedLists(pool)
    transactions = list(islice(only_appends.transactions(seed=1), 150))

    history = run_list_append(lists, pool.begin, transactions=transactions, settle=lists.catch_up)

    # Deadlocks over several streams are among the failures: they must have left nothing.
    assert not verdict(history, model="strict-serializable")


def test_a_read_model_that_nobody_ran_is_caught_in_the_end(pool: Engine) -> None:
    history = run_list_append(
        ProjectedLists(pool), pool.begin, transactions=[[("append", 1, 1)]], clients=1
    )

    assert verdict(history, model="strict-serializable")


def test_a_read_model_is_as_good_as_its_log_to_readers_who_wait(pool: Engine) -> None:
    lists = PatientProjectedLists(pool)

    history = run_list_append(
        lists, pool.begin, transactions=islice(ONE_AT_A_TIME.transactions(seed=1), 100), clients=4
    )

    assert not verdict(history, model="strict-serializable")
