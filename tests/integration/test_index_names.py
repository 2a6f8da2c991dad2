"""Tables and columns that are named like parts of our own statements."""

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, insert

from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import build, run

pytestmark = pytest.mark.postgres


def declared(table: str, key: str) -> tuple[Table, IndexTable]:
    base = Table(
        table,
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column(key, Text),
        Column("note", Text),
    )
    return base, IndexTable("by_name", on=[base.c[key]], include=[base.c.note])


@pytest.mark.parametrize(
    ("table", "key"),
    [
        *(("line", key) for key in ("ordinal", "key_1", "image_0", "row_limit", "kind", "rows")),
        *(
            (table, "name")
            for table in ("wanted", "found", "due", "locked", "ready", "old_rows", "gone", "now")
        ),
    ],
)
def test_names_of_our_statements_are_not_in_the_way(engine: Engine, table: str, key: str) -> None:
    base, index = declared(table, key)
    base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(insert(base), [{"id": 1, key: "a"}, {"id": 2, key: "a"}])
    build(engine, index, limit=1)

    with engine.begin() as conn:
        conn.execute(insert(base).values({"id": 3, key: "b"}))
        assert [row.id for row in index.lookup(conn, "a", after=(1,))] == [2]
        found = index.lookup_many(conn, ["a", "b"])
        assert [[row.id for row in rows] for rows in found.values()] == [[1, 2], [3]]
        assert len(index.lookup_range(conn, low="b")) == len(index.keys(conn, "b")) == 1
        assert index.repair(conn).clean


def test_rows_of_a_table_named_like_a_part_of_a_chunk_are_locked(engine: Engine) -> None:
    base, index = declared("due", "name")
    base.metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(insert(base), [{"id": number, "name": "a"} for number in (1, 2, 3)])
        index.create(conn)

    with engine.connect() as writer, engine.begin() as conn:
        run(writer, "DELETE FROM due WHERE id = 2")
        # The chunk must end before the row that is being deleted.
        assert index.backfill(conn).rows_done == 1
