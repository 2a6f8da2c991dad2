"""An UPDATE of one row to a value that equals the old one, or looks so, or has its bytes."""

from typing import Any

import pytest
from sqlalchemy import Column, Computed, Double, Engine, Integer, MetaData, Numeric, Table, Text
from sqlalchemy.types import TypeEngine

from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import assert_agrees, build, run

pytestmark = pytest.mark.postgres

LONG = "(SELECT string_agg(md5(g::text), '') FROM generate_series(1, 300) g)"
VALUES: dict[str, tuple[TypeEngine[Any], str, str]] = {
    "negative zero": (Double(), "0", "'-0'"),
    "positive zero": (Double(), "'-0'", "0"),
    "not a number": (Double(), "'NaN'", "'NaN'"),
    "scale": (Numeric(), "1.0", "1.00"),
    "scale taken away": (Numeric(), "1.00", "1.0"),
    "decomposed": (Text(), "U&'\\00e9'", "U&'e\\0301'"),
    "long": (Text(), LONG, LONG + " || 'x'"),
    "long, the same": (Text(), LONG, LONG),
}
STATEMENTS = (
    "UPDATE thing SET value = {} WHERE id = 1",
    "INSERT INTO thing VALUES (1, 2, {0}) ON CONFLICT (id) DO UPDATE SET value = excluded.value",
    (
        "MERGE INTO thing USING (SELECT 1 AS one) AS given ON id = one"
        " WHEN MATCHED THEN UPDATE SET value = {}"
    ),
)


@pytest.mark.parametrize("statement", STATEMENTS, ids=["update", "upsert", "merge"])
@pytest.mark.parametrize(("own_type", "before", "after"), VALUES.values(), ids=VALUES.keys())
def test_one_row_gets_the_value_that_was_written(
    engine: Engine, own_type: TypeEngine[Any], before: str, after: str, statement: str
) -> None:
    thing = Table(
        "thing",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("number", Integer),
        Column("value", own_type),
        Column("twice", Integer, Computed("number * 2", persisted=True)),
    )
    # As part of the key unless it is too long for an index; carried along; and only asked for.
    indexes = [
        IndexTable("by_number", on=[thing.c.number], include=[thing.c.value]),
        IndexTable("by_twice", on=[thing.c.twice], where=thing.c.value.is_not(None)),
    ]
    if before != LONG:
        indexes.append(IndexTable("by_value", on=[thing.c.value], unique=True))
    thing.metadata.create_all(engine)
    with engine.begin() as conn:
        run(conn, f"INSERT INTO thing VALUES (1, 1, {before}), (2, 2, NULL)")  # noqa: S608 -- constants
    for index in indexes:
        build(engine, index)
    changes = [statement.format(after), "UPDATE thing SET number = number + 1 WHERE id = 1"]
    with engine.begin() as conn:
        for change in (*changes, statement.format("NULL"), statement.format(before)):
            run(conn, change)
            for index in indexes:
                assert_agrees(conn, index)
        [(kept, written)] = conn.exec_driver_sql(
            "SELECT CAST(i.value AS text), CAST(t.value AS text)"
            " FROM datapatterns.by_number AS i JOIN thing AS t USING (id) WHERE id = 1"
        )
        assert kept == written
