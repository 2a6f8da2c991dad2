"""A type that only a view needed can be dropped once the view, or its column, is gone."""

from collections.abc import Sequence

import pytest
from psycopg.errors import DependentObjectsStillExist
from sqlalchemy import Column, Engine, Integer, MetaData, Table, func, select, text
from sqlalchemy.dialects.postgresql import ENUM
from sqlalchemy.exc import InternalError

from datapatterns.change_log.capture_names import capture_names
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.view_tables import create, differences, differences_now, refresh, run, verify

pytestmark = pytest.mark.postgres

visit = Table(
    "visit",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("place", Integer),
    Column("mood", ENUM("glad", "sad", name="mood")),
    Column("cents", Integer),
)
PLACES = select(visit.c.place, func.sum(visit.c.cents).label("cents")).group_by(visit.c.place)
KEPT = MaterializedView("places", PLACES)
MOST = select(visit.c.place, func.max(visit.c.cents).label("most")).group_by(visit.c.place)
ALSO_KEPT = MaterializedView("most", MOST)
MOODS = MaterializedView(
    "moods", select(visit.c.mood, func.count().label("n")).group_by(visit.c.mood)
)
LOG = f"datapatterns.{capture_names('datapatterns', 'public', 'visit').log_name}"
GO = ("ALTER TABLE visit DROP COLUMN mood", "DROP TYPE mood")
RIGHTS = text(
    "SELECT relacl::text, obj_description(oid, 'pg_class') FROM pg_class"
    " WHERE oid = to_regclass(:log)"
)


@pytest.fixture(autouse=True)
def _views(engine: Engine) -> None:
    with engine.begin() as conn:
        visit.metadata.create_all(conn)
    create(engine, MOODS, KEPT, ALSO_KEPT)
    run(engine, "INSERT INTO visit SELECT g, g % 3, 'sad', g FROM generate_series(1, 40) g")


def rights(engine: Engine) -> Sequence[object]:
    with engine.connect() as conn:
        return conn.execute(RIGHTS, {"log": LOG}).one()


def drop_moods(engine: Engine) -> None:
    with engine.begin() as conn:
        MOODS.drop(conn)


def test_a_type_goes_with_the_last_view_that_reads_it(engine: Engine) -> None:
    run(
        engine,
        f"GRANT SELECT ON {LOG} TO pg_monitor",
        f"GRANT SELECT (change_xid) ON {LOG} TO PUBLIC",
    )
    before = rights(engine)

    drop_moods(engine)
    run(engine, *GO)

    assert rights(engine) == before
    run(engine, "UPDATE visit SET cents = cents + 1 WHERE id < 9", "DELETE FROM visit WHERE id = 9")
    for view, query in ((KEPT, PLACES), (ALSO_KEPT, MOST)):
        with engine.connect() as conn:
            # What was logged before is pending, too.
            assert differences_now(conn, view, query) == 0
        assert verify(engine, view) == []
        refresh(engine, view)
        assert differences(engine, view, query) == 0
    with engine.begin() as conn:
        MaterializedView("rows", select(func.count(visit.c.id).label("n"))).create(conn)


def test_a_view_of_somebodys_upon_the_log_stays_and_keeps_the_type(engine: Engine) -> None:
    run(engine, f"CREATE VIEW mine AS SELECT change_xid, place FROM {LOG}")  # noqa: S608 -- ours

    drop_moods(engine)

    with pytest.raises(InternalError) as refused:
        run(engine, *GO)
    assert isinstance(refused.value.orig, DependentObjectsStillExist)
    run(engine, "DROP VIEW mine")
    for view, query in ((KEPT, PLACES), (ALSO_KEPT, MOST)):
        refresh(engine, view)
        assert differences(engine, view, query) == 0
