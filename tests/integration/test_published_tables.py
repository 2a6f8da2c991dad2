"""What a publication of all tables would keep from being changed, changes all the same."""

import pytest
from sqlalchemy import Engine, func, select, text

from datapatterns.change_log import ChangeLog
from datapatterns.materialized_view import MaterializedView
from tests.fixtures.view_tables import (
    Line,
    create,
    create_tables,
    largest_lines,
    refresh,
    run,
    verify,
)

LOG = ChangeLog()
SUMS = MaterializedView(
    "sums", select(Line.week, func.sum(Line.cents).label("cents")).group_by(Line.week)
)
LARGEST = MaterializedView("largest", largest_lines())


def test_garbage_is_collected_where_all_tables_are_published(engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE item (id int)"))
        LOG.capture(conn, "item", ["id"])
        conn.execute(text("CREATE PUBLICATION everything FOR ALL TABLES"))
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO item VALUES (1), (2)"))

    with engine.begin() as conn:
        assert LOG.collect_garbage(conn) == 2


@pytest.mark.parametrize("view", [SUMS, LARGEST], ids=lambda view: view.name)
def test_a_view_is_refreshed_where_all_tables_are_published(
    engine: Engine, view: MaterializedView
) -> None:
    with engine.begin() as conn:
        create_tables(conn)
    create(engine, view)
    run(
        engine,
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "INSERT INTO product VALUES (1, 'toys')",
        "INSERT INTO line VALUES (1, 7, 1, 250), (2, 8, 1, 100)",
    )
    refresh(engine, view)
    run(engine, "UPDATE line SET cents = 300 WHERE id = 1", "DELETE FROM line WHERE id = 2")

    refresh(engine, view)

    assert verify(engine, view) == []
