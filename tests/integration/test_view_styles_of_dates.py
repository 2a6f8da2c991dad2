"""Servers and sessions write dates and intervals as they like; views go on, and say so."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Integer,
    Interval,
    MetaData,
    Table,
    func,
    select,
    text,
)

from datapatterns.change_log import ChangeLog
from datapatterns.errors import SettingsError
from datapatterns.materialized_view import MaterializedView, Views, ViewState
from tests.fixtures.view_tables import create, differences_now, run, verify

pytestmark = pytest.mark.postgres

visit = Table(
    "visit",
    MetaData(),
    Column("place", Integer),
    Column("at", DateTime(timezone=True)),
    Column("took", Interval),
)
LAST = select(
    visit.c.place, func.max(visit.c.at).label("last"), func.sum(visit.c.took).label("took")
).group_by(visit.c.place)
VIEW = MaterializedView("last_visit", LAST, max_staleness_seconds=60)
UPON = MaterializedView(
    "visits", select(func.count(VIEW.c.place).label("n")), max_staleness_seconds=60
)
VIEWS = Views([VIEW, UPON])
STYLES = ["German", "SQL, DMY", "Postgres, MDY", "ISO, YMD"]


@pytest.fixture(params=STYLES)
def styled(engine: Engine, request: pytest.FixtureRequest) -> Engine:
    """An engine whose sessions have the database's style."""
    with engine.begin() as conn:
        visit.metadata.create_all(conn)
        name = conn.scalar(text("SELECT quote_ident(current_database())"))
        conn.execute(text(f"ALTER DATABASE {name} SET DateStyle = {request.param}"))
        conn.execute(text(f"ALTER DATABASE {name} SET IntervalStyle = postgres_verbose"))
    engine.dispose()
    return engine


def test_views_go_on_in_every_style(styled: Engine) -> None:
    create(styled, VIEW, UPON)
    run(styled, "INSERT INTO visit VALUES (1, '2024-03-02 10:00:00.123456+00', '1 day 02:00')")

    with styled.connect() as conn:
        assert not differences_now(conn, VIEW, LAST)
        stale, _ = VIEWS.status(conn)
        assert stale.state is ViewState.STALE
        assert ChangeLog().status(conn).consumers["view:last_visit"].pending_rows == 1
    VIEWS.refresh(styled)
    worker = VIEWS.worker()
    done = worker.step(styled)

    assert (done.reports, dict(worker.troubles)) == ({}, {})
    assert verify(styled, VIEW) == verify(styled, UPON) == []
    with styled.connect() as conn:
        (fresh, upon) = VIEWS.status(conn)
        assert fresh.state is upon.state is ViewState.FRESH
        assert fresh.freshness is not None
        assert fresh.freshness.refreshed_at is not None
        age = datetime.now(UTC) - fresh.freshness.refreshed_at
        assert abs(age) < timedelta(hours=1)
        as_server = conn.scalar(
            text(
                "SELECT extract(epoch FROM advanced_at) FROM datapatterns.change_consumer"
                " WHERE name = 'view:last_visit'"
            )
        )
        since = fresh.freshness.refreshed_at - datetime(1970, 1, 1, tzinfo=UTC)
        assert since / timedelta(microseconds=1) == int(as_server * 1_000_000)


@pytest.mark.parametrize("styled", ["German"], indirect=True)
def test_rows_that_the_driver_cannot_read_are_refused_with_advice(styled: Engine) -> None:
    run(styled, "INSERT INTO visit VALUES (1, now(), '1 day 02:00')")
    create(styled, VIEW)
    run(styled, "DELETE FROM datapatterns.last_visit_stored")
    with styled.begin() as conn, pytest.raises(SettingsError, match="SET datestyle TO ISO"):
        VIEW.verify(conn)
    with styled.begin() as conn:
        conn.execute(text("SET datestyle TO ISO"))
        conn.execute(text("SET intervalstyle TO postgres"))
        (difference,) = VIEW.verify(conn)
        assert difference.row["place"] == 1
