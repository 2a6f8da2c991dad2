"""Workers refresh views when they are due, beside each other, whatever fails."""

from collections.abc import Iterator
from datetime import timedelta
from threading import Thread

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from datapatterns import DataLayer
from datapatterns.change_log import ChangeLog
from datapatterns.errors import (
    ViewChangedError,
    ViewMissingError,
    ViewNotPopulatedError,
    ViewTimeoutError,
)
from datapatterns.materialized_view import Every, MaterializedView, Views, ViewWorker
from datapatterns.runtime import CollectLoop, ViewLoop, Worker, view_loops
from datapatterns.telemetry import SilentObserver
from datapatterns.testing import ManualClock, wait_until
from tests.fixtures.view_tables import (
    Line,
    create_tables,
    differences,
    largest_lines,
    run,
    weekly_sales,
)

pytestmark = pytest.mark.postgres

SECONDS = 60.0
WEEKLY = MaterializedView("weekly_sales", weekly_sales(), max_staleness_seconds=60)
LARGEST = MaterializedView("largest_lines", largest_lines(), schedule=Every(3600))
ON_DEMAND = MaterializedView("on_demand", weekly_sales())
VIEWS = Views([WEEKLY, LARGEST, ON_DEMAND])
STOCK = (
    "INSERT INTO product VALUES (1, 'dairy'), (2, NULL)",
    "INSERT INTO line SELECT g, 1 + g % 2, 1 + g % 2, 10 * g, g / 4. FROM generate_series(1, 20) g",
)
SLOW = (
    (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
    ),
    (
        "CREATE TRIGGER slow BEFORE INSERT OR UPDATE OR DELETE"
        " ON datapatterns.weekly_sales_stored FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    ),
)
SLEEPERS = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE wait_event = 'PgSleep' AND datname = current_database()"
)


class Counted(SilentObserver):
    def __init__(self) -> None:
        self.counts: list[tuple[str, str]] = []

    def count(self, name: str, amount: int = 1, /, **attributes: str) -> None:
        del amount
        self.counts.append((name.removeprefix("datapatterns.view."), attributes["view"]))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def views(engine: Engine, clock: ManualClock) -> Views:
    with engine.begin() as conn:
        create_tables(conn)
        VIEWS.create(conn)
    run(engine, *STOCK)
    return Views(VIEWS.declared, clock=clock)


@pytest.fixture
def filled(engine: Engine, views: Views) -> Views:
    views.populate(engine)
    return views


def let_pass(engine: Engine, seconds: float) -> None:
    """Let all views have been refreshed so much earlier."""
    with engine.begin() as conn:
        conn.execute(
            text("UPDATE datapatterns.change_consumer SET advanced_at = advanced_at - :age"),
            {"age": timedelta(seconds=seconds)},
        )


def step(worker: ViewWorker, engine: Engine) -> list[str]:
    """Step until there is no more to do for now; return what was refreshed."""
    done: list[str] = []
    while True:
        work = worker.step(engine)
        done += work.reports
        if work.pause_seconds:
            return done


def test_what_is_due_is_refreshed_and_nothing_else(engine: Engine, filled: Views) -> None:
    worker = filled.worker()
    run(engine, "DELETE FROM line WHERE week = 1")

    none = step(worker, engine)
    let_pass(engine, 60)
    first = step(worker, engine)
    let_pass(engine, 3600)
    both = step(worker, engine)

    assert (none, first, both) == ([], ["weekly_sales"], ["weekly_sales", "largest_lines"])
    assert differences(engine, WEEKLY, weekly_sales()) == 0
    assert differences(engine, LARGEST, largest_lines()) == 0
    assert differences(engine, ON_DEMAND, weekly_sales()) > 0


def test_the_most_overdue_is_refreshed_first(engine: Engine, filled: Views) -> None:
    let_pass(engine, 3700)

    assert step(filled.worker(), engine) == ["weekly_sales", "largest_lines"]
    let_pass(engine, 3700)
    filled.refresh(engine, ["weekly_sales"])
    let_pass(engine, 60)
    assert step(filled.worker(), engine) == ["largest_lines", "weekly_sales"]


def test_a_worker_pauses_until_the_next_view_is_due(engine: Engine, filled: Views) -> None:
    let_pass(engine, 57)

    pause = filled.worker().step(engine).pause_seconds

    assert 0 < pause < 3
    assert filled.worker(["largest_lines"]).step(engine).pause_seconds >= 5


def test_views_are_filled_if_that_is_asked_for(engine: Engine, views: Views) -> None:
    lookers_on = views.worker()
    assert step(lookers_on, engine) == []
    assert {*map(type, lookers_on.troubles.values())} == {ViewNotPopulatedError}

    assert step(views.worker(populate=True), engine) == [view.name for view in VIEWS.declared]
    assert step(lookers_on, engine) == []
    assert lookers_on.troubles == {}
    with engine.begin() as conn:
        ChangeLog().rebase(conn)
    assert len(step(views.worker(populate=True), engine)) == 3


def test_a_view_that_somebody_fills_is_left_to_them(
    engine: Engine, views: Views, clock: ManualClock
) -> None:
    worker = views.worker(["weekly_sales"], populate=True)
    with engine.connect() as other:
        other.execute(
            text(
                "SELECT pg_advisory_xact_lock("
                "hashtextextended('datapatterns.weekly_sales is populated', 0))"
            )
        )
        assert step(worker, engine) == []

    assert step(worker, engine) == []
    clock.advance(1)
    assert step(worker, engine) == ["weekly_sales"]


def test_a_view_that_somebody_refreshes_is_left_to_them(
    engine: Engine, filled: Views, clock: ManualClock
) -> None:
    worker = filled.worker()
    let_pass(engine, 3700)
    with engine.connect() as other:
        WEEKLY.refresh(other)

        assert step(worker, engine) == ["largest_lines"]
        other.rollback()
    assert worker.troubles == {}
    assert step(worker, engine) == []
    clock.advance(1)
    assert step(worker, engine) == ["weekly_sales"]


def test_what_fails_rests_and_the_others_go_on(engine: Engine, clock: ManualClock) -> None:
    seen = Counted()
    with engine.begin() as conn:
        create_tables(conn)
        VIEWS.create(conn)
    changed = MaterializedView(
        "weekly_sales", weekly_sales().where(Line.week > 1), max_staleness_seconds=60
    )
    missing = MaterializedView("missing", largest_lines(), max_staleness_seconds=1)
    VIEWS.populate(engine)
    worker = Views([missing, changed, LARGEST], clock=clock).worker(observer=seen)
    let_pass(engine, 3700)

    assert step(worker, engine) == ["largest_lines"]
    assert {name: type(error) for name, error in worker.troubles.items()} == {
        "missing": ViewMissingError,
        "weekly_sales": ViewChangedError,
    }
    assert step(worker, engine) == []
    clock.advance(0.25)
    assert step(worker, engine) == []
    assert seen.counts == [
        ("failed", "weekly_sales"),
        ("refreshed", "largest_lines"),
        ("failed", "weekly_sales"),
    ]


def test_a_view_that_works_again_is_no_trouble_any_more(
    engine: Engine, filled: Views, clock: ManualClock
) -> None:
    worker = filled.worker(["weekly_sales"])
    let_pass(engine, 60)
    run(engine, "ALTER TABLE line RENAME TO lines")
    assert step(worker, engine) == []
    run(engine, "ALTER TABLE lines RENAME TO line")
    assert isinstance(worker.troubles["weekly_sales"], ViewChangedError)

    clock.advance(1)

    assert step(worker, engine) == ["weekly_sales"]
    assert worker.troubles == {}


def test_a_refresh_that_takes_too_long_is_given_up(engine: Engine, filled: Views) -> None:
    # Real time, which the server measures as well.
    worker = Views(filled.declared).worker(["weekly_sales"], timeout_seconds=0.1)
    run(engine, *SLOW, "UPDATE line SET cents = cents + 1")
    let_pass(engine, 60)

    assert step(worker, engine) == []

    assert isinstance(worker.troubles["weekly_sales"], ViewTimeoutError)


def test_a_database_that_does_not_answer_is_no_views_fault(filled: Views) -> None:
    worker = filled.worker()
    away = create_engine("postgresql+psycopg://ann@127.0.0.1:1/shop")

    with pytest.raises(Exception, match="refused"):
        worker.step(away)

    assert worker.troubles == {}


def test_what_all_have_taken_in_is_deleted_from_the_log(engine: Engine, filled: Views) -> None:
    collector = CollectLoop(engine, limit=30)
    run(engine, "UPDATE line SET cents = cents + 1")
    assert collector.step() == 10

    filled.refresh(engine)

    pauses = [collector.step(), collector.step()]
    assert pauses == [0, 10]
    with engine.connect() as conn:
        name = conn.scalar(
            text("SELECT log_name FROM datapatterns.captured_table WHERE table_name = 'line'")
        )
        left = conn.scalar(text(f"SELECT count(*) FROM datapatterns.{name}"))  # noqa: S608
    assert left == 0


def test_a_worker_without_threads_for_views_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="0 threads"):
        view_loops(engine, VIEWS, view_threads=0)
    assert view_loops(engine, Views()) == []


@pytest.fixture
def layer(database_url: URL) -> Iterator[DataLayer]:
    fast = [
        MaterializedView("weekly_sales", weekly_sales(), max_staleness_seconds=0.1),
        MaterializedView("largest_lines", largest_lines(), max_staleness_seconds=0.1),
    ]
    with DataLayer(database_url, views=fast) as layer:
        yield layer


def running(worker: Worker) -> Thread:
    thread = Thread(target=worker.run)
    thread.start()
    return thread


def test_workers_keep_views_fresh_until_they_are_stopped(engine: Engine, layer: DataLayer) -> None:
    with engine.begin() as conn:
        create_tables(conn)
        layer.views.create(conn)
    workers = [layer.worker(populate_views=True, view_threads=2) for _ in range(2)]
    threads = [running(worker) for worker in workers]
    try:
        for statement in (*STOCK, "DELETE FROM line WHERE week = 1", "TRUNCATE line"):
            run(engine, statement)
            wait_until(
                lambda: (
                    not differences(engine, WEEKLY, weekly_sales())
                    and not differences(engine, LARGEST, largest_lines())
                ),
                deadline_seconds=SECONDS,
            )
    finally:
        for worker, thread in zip(workers, threads, strict=True):
            worker.stop()
            thread.join(SECONDS)

    assert not any(thread.is_alive() for thread in threads)
    with engine.connect() as conn:
        assert all(one.freshness and one.freshness.populated for one in layer.views.status(conn))


def test_a_refresh_that_is_not_finished_in_time_is_undone_when_a_worker_stops(
    engine: Engine, layer: DataLayer
) -> None:
    with engine.begin() as conn:
        create_tables(conn)
        layer.views.create(conn)
    layer.views.populate(engine)
    run(engine, *SLOW, *STOCK)
    worker = layer.worker(["weekly_sales"], grace_seconds=0.01)
    thread = running(worker)
    wait_until(lambda: sleepers(engine) == 1, deadline_seconds=SECONDS)

    worker.stop()
    thread.join(SECONDS)

    assert not thread.is_alive()
    assert sleepers(engine) == 0
    with engine.connect() as conn:
        assert WEEKLY.freshness(conn).pending_rows > 0


def sleepers(engine: Engine) -> int:
    with engine.connect() as conn:
        return int(conn.execute(SLEEPERS).scalar_one())


def test_only_what_is_named_is_run(layer: DataLayer) -> None:
    def names(worker: Worker) -> list[str]:
        loops = [loop for loop in worker.loops if isinstance(loop, ViewLoop)]
        return [name for loop in loops for one in loop.worker.companies for name in one.names]

    assert names(layer.worker()) == ["weekly_sales", "largest_lines"]
    assert names(layer.worker(["largest_lines"])) == ["largest_lines"]
