"""Keys that can be computed only of rows that the predicate lets in; and when a failure is over."""

from typing import Literal

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text

from datapatterns.errors import IndexDiffersError, IndexFailedError
from datapatterns.index_table import Indexes, IndexTable
from tests.fixtures.index_tables import assert_agrees, build, order_line, run, tables

pytestmark = pytest.mark.postgres

share = Table(
    "share",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("parts", Integer),
    Column("note", Text),
)


@pytest.mark.parametrize("mode", ["local", "async"])
def test_a_key_is_not_computed_of_rows_that_are_left_out(
    engine: Engine, mode: Literal["local", "async"]
) -> None:
    by_percent = IndexTable(
        "share_by_percent",
        on=[100 // share.c.parts],
        where=share.c.parts != 0,
        include=[share.c.note],
        mode=mode,
    )
    share.metadata.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO share VALUES (1, 0, 'a'), (2, 4, 'b'), (3, NULL, 'c')")
    build(engine, by_percent)
    for statement in (
        "INSERT INTO share VALUES (4, 0, 'd'), (5, 5, 'e')",
        "UPDATE share SET note = 'f' WHERE id = 1",
        "UPDATE share SET parts = 0 WHERE id = 2",
        "UPDATE share SET parts = 4 WHERE id = 2",
        "UPDATE share SET parts = 5 - parts",
        "INSERT INTO share VALUES (1, 0, 'g') ON CONFLICT (id) DO UPDATE SET parts = 0",
        "UPDATE share SET parts = 4 WHERE id = 2",
        "DELETE FROM share WHERE id = 1",
    ):
        with engine.begin() as conn:
            run(conn, statement)
        if mode == "async":
            with engine.begin() as conn:
                by_percent.catch_up(conn)
        with engine.connect() as conn:
            assert_agrees(conn, by_percent)
    with engine.connect() as conn:
        assert [row.id for row in by_percent.lookup(conn, 25)] == [2]
        assert by_percent.lookup(conn, 0) == []


def test_a_failure_is_forgotten_once_the_index_was_activated(engine: Engine) -> None:
    by_note = IndexTable("line_by_note", on=[order_line.c.note], unique=True)
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line VALUES (1, 1, 'a'), (2, 2, 'a')")
        by_note.create(conn)
    indexes = Indexes([by_note])
    with pytest.raises(IndexFailedError):
        indexes.build(engine)
    # Caught and committed: what was written down about it stays.
    with engine.begin() as conn, pytest.raises(IndexDiffersError):
        by_note.activate(conn)
    with engine.connect() as conn:
        [report] = indexes.status(conn)
        assert (report.state, bool(report.problem)) == ("failed", True)
        assert len(indexes.conflicts(conn, "line_by_note")) == 1
    with engine.begin() as conn:
        run(conn, "UPDATE order_line SET note = 'b' WHERE id = 2")
    indexes.repair(engine)
    with engine.begin() as conn:
        assert by_note.activate(conn).clean
    with engine.connect() as conn:
        [report] = indexes.status(conn)
        assert (report.state, report.problem) == ("ready", None)
        assert indexes.conflicts(conn, "line_by_note") == []
