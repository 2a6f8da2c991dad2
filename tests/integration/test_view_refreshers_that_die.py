"""A refresher whose connection is ended leaves the stored rows as they were."""

from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest
from sqlalchemy import Engine, Text, cast, func, select, text
from sqlalchemy.exc import OperationalError

from datapatterns.materialized_view import Full, MaterializedView
from tests.fixtures.blocking import until_blocked_by
from tests.fixtures.view_tables import (
    STOCK,
    create,
    create_tables,
    differences,
    largest_lines,
    refresh,
    run,
    verify,
    weekly_sales,
)

WEEKLY = MaterializedView("weekly_sales", weekly_sales())
LARGEST = MaterializedView("largest_lines", largest_lines())
REBUILT = MaterializedView("weekly_rebuilt", weekly_sales(), maintain=Full())


@pytest.fixture(autouse=True)
def shop(engine: Engine) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    run(engine, *STOCK)


def test_a_refresher_that_dies_changes_nothing(engine: Engine) -> None:
    create(engine, WEEKLY)
    run(engine, "UPDATE line SET cents = cents + 1")
    with engine.connect() as conn:
        WEEKLY.refresh(conn)
        pid = conn.scalar(text("SELECT pg_backend_pid()"))
        with engine.begin() as killer:
            killer.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        with pytest.raises(OperationalError):
            conn.execute(text("SELECT 1"))

    refresh(engine, WEEKLY)

    assert differences(engine, WEEKLY, weekly_sales()) == 0


def shown(engine: Engine, view: MaterializedView) -> list[str]:
    with engine.connect() as conn:
        return sorted(conn.scalars(select(cast(func.row(*view.c), Text))))


@pytest.mark.parametrize("view", [WEEKLY, LARGEST, REBUILT], ids=["counting", "groups", "full"])
def test_a_refresher_that_is_ended_halfway_through_the_rows_changes_nothing(
    engine: Engine, view: MaterializedView
) -> None:
    create(engine, view)
    before = shown(engine, view)
    run(engine, "UPDATE line SET cents = cents + 1")
    pids: Queue[int] = Queue()

    def refresh_and_tell_who() -> None:
        with engine.begin() as conn:
            pids.put(conn.scalar(text("SELECT pg_backend_pid()")))
            view.refresh(conn)

    with engine.connect() as holder, ThreadPoolExecutor() as pool:
        held = f"SELECT FROM datapatterns.{view.name}_stored ORDER BY ctid DESC LIMIT 1 FOR UPDATE"
        holder.execute(text(held))
        refreshing = pool.submit(refresh_and_tell_who)
        until_blocked_by(engine, holder)
        with engine.begin() as killer:
            ended = text("SELECT pg_terminate_backend(:pid, 10000)")
            killer.execute(ended, {"pid": pids.get(timeout=30)})
        with pytest.raises(OperationalError):
            refreshing.result(timeout=30)

    assert shown(engine, view) == before
    assert verify(engine, view) == []
    refresh(engine, view)
    assert shown(engine, view) != before
    assert verify(engine, view) == []
