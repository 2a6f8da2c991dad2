"""Processes die while they build index tables or keep them behind their writers."""

import pytest
from sqlalchemy import URL, Engine, text

from datapatterns.index_table import Indexes
from tests.fixtures import doomed_workers as workers
from tests.fixtures.forked_workers import run_until_failpoint
from tests.fixtures.index_tables import assert_agrees, build, run, tables

pytestmark = [pytest.mark.postgres, pytest.mark.chaos]


def written(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.mark.parametrize(("failpoint", "visit"), workers.BACKFILLING)
def test_a_backfill_goes_on_after_the_last_whole_chunk(
    engine: Engine, failpoint: str, visit: int
) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO customer (tenant_id, id, email)"
                " SELECT 1, n, 'at' || n FROM generate_series(1, 10) AS n"
            )
        )
        workers.INDEX.create(conn)
    run_until_failpoint(workers.backfill, failpoint, written(engine.url), visit=visit)

    with engine.begin() as conn:
        progress = workers.INDEX.backfill(conn, limit=100)
        workers.INDEX.activate(conn)

    with engine.connect() as conn:
        assert progress.rows_done == 10
        assert assert_agrees(conn, workers.INDEX) == 10


@pytest.mark.parametrize(("failpoint", "visit"), workers.CATCHING_UP)
def test_what_a_worker_that_died_has_not_taken_in_is_taken_in_by_the_next(
    engine: Engine, failpoint: str, visit: int
) -> None:
    tables.create_all(engine)
    build(engine, workers.INDEX_BEHIND)
    with engine.begin() as conn:
        run(conn, "INSERT INTO customer (tenant_id, id, email) VALUES (1, 1, 'a'), (1, 2, 'b')")
    run_until_failpoint(workers.catch_up, failpoint, written(engine.url), visit=visit)
    with engine.connect() as conn:
        assert workers.INDEX_BEHIND.lookup(conn, "a") == []
        assert workers.INDEX_BEHIND.lag(conn).pending_rows == 2

    workers.catch_up(written(engine.url))

    with engine.connect() as conn:
        assert len(workers.INDEX_BEHIND.lookup(conn, "a")) == 1
        assert assert_agrees(conn, workers.INDEX_BEHIND) == 2


@pytest.mark.parametrize(("failpoint", "visit"), workers.VERIFYING_AN_INDEX)
def test_an_index_whose_verifier_died_is_verified_by_the_next(
    engine: Engine, failpoint: str, visit: int
) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO customer (tenant_id, id, email) VALUES (1, 1, 'a'), (1, 2, 'b')")
        workers.INDEX.create(conn)
    run_until_failpoint(workers.build_index, failpoint, written(engine.url), visit=visit)
    with engine.connect() as conn:
        [report] = Indexes([workers.INDEX]).status(conn)
        assert report.state == "verifying"

    workers.build_index(written(engine.url))

    with engine.connect() as conn:
        assert len(workers.INDEX.lookup(conn, "a")) == 1
