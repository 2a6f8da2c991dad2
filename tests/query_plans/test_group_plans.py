"""Bringing one group up to date reads no whole table, as the server itself counts it."""

import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.orm import aliased

from tests.fixtures.kept_groups import KeptGroups
from tests.fixtures.view_tables import AnySelect, Line, Product, create_tables, largest_lines

pytestmark = pytest.mark.postgres

other = aliased(Line)
QUERIES: dict[str, AnySelect] = {
    "one table": select(Line.week, func.max(Line.cents).label("most")).group_by(Line.week),
    "an outer join": largest_lines(),
    "a join with itself": select(Line.week, func.count().label("pairs"))
    .join(other, Line.product_id == other.product_id)
    .group_by(Line.week),
    "several keys": select(Line.week, Product.department, func.min(Line.cents).label("least"))
    .join(Product, Product.id == Line.product_id)
    .group_by(Line.week, Product.department),
    "rows": select(Line.id, Product.department, Line.weight).join(
        Product, Product.id == Line.product_id, isouter=True
    ),
}
FILL = """
INSERT INTO product SELECT g, 'd' || g FROM generate_series(1, 20000) g;
INSERT INTO line SELECT g, mod(g, 20000), 1 + mod(g, 20000), mod(g, 91), 1
  FROM generate_series(1, 60000) g;
CREATE INDEX ON line (week);
CREATE INDEX ON product (department);
"""
CHANGES = [
    "UPDATE line SET cents = 1000 WHERE id = 77",
    "DELETE FROM line WHERE id = 78",
    "INSERT INTO product VALUES (30000, 'd5')",
]


@pytest.fixture
def filled(engine: Engine) -> Engine:
    with engine.begin() as conn:
        create_tables(conn)
        conn.execute(text(FILL))
    return engine


def whole_reads(conn: Connection) -> dict[str, int]:
    """Return how often this session has read all of a table lately."""
    scans = text("SELECT pg_stat_get_xact_numscans(CAST(:t AS regclass))")
    tables = ("line", "product", "datapatterns.kept_stored")
    return {name: conn.scalar(scans, {"t": name}) or 0 for name in tables}


@pytest.mark.parametrize("name", QUERIES)
def test_one_group_is_brought_up_to_date_without_reading_a_whole_table(
    filled: Engine, name: str
) -> None:
    kept = KeptGroups(filled, QUERIES[name])
    kept.create()
    keys = ", ".join(kept.plan.stored_keys)
    with filled.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text(f"CREATE INDEX ON datapatterns.kept_stored ({keys})"))
        conn.execute(text("VACUUM ANALYZE"))
    for change in CHANGES:
        with filled.begin() as conn:
            conn.execute(text(change))

        with filled.begin() as conn:
            before = whole_reads(conn)
            found = kept.apply(conn)
            assert whole_reads(conn) == before

        assert found.groups <= 20
        with filled.begin() as conn:
            assert kept.differences(conn, kept.stored()) == []
