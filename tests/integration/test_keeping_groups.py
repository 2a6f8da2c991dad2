"""What keeping by groups has to think of, one thing at a time."""

from typing import NamedTuple

import pytest
from sqlalchemy import Connection, Engine, Executable, and_, func, inspect, select, text, true
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import aliased

from datapatterns.materialized_view.grouping.applying import probe
from tests.fixtures.kept_groups import KeptGroups
from tests.fixtures.view_tables import (
    AnySelect,
    Line,
    Product,
    create_tables,
    largest_lines,
    run,
)

pytestmark = pytest.mark.postgres

count = func.count().label("n")
other = aliased(Line)
missing = aliased(Product)

BEFORE = """
INSERT INTO product VALUES (1, 'bread'), (2, NULL), (3, 'fruit'), (4, 'fruit');
INSERT INTO line VALUES (1, 1, 1, 10, 1.0), (2, 1, 2, 20, 1), (3, NULL, 3, 30, 1), (4, 2, 9, 5, 1),
  (5, NULL, NULL, 0, 1), (6, 2, 3, 30, 2);
"""


class Change(NamedTuple):
    """What happens to the tables, and the rows of the query after it that were not there before."""

    query: AnySelect
    statements: list[str]
    new: set[str]


by_department = (
    select(Product.department, count)
    .select_from(Line)
    .join(Product, Product.id == Line.product_id, isouter=True)
    .group_by(Product.department)
)
CHANGES = {
    "a row appears that an outer join was missing": Change(
        by_department, ["INSERT INTO product VALUES (9, 'new')"], {"new, 1", "None, 2"}
    ),
    "a row goes that an outer join had found": Change(
        by_department, ["DELETE FROM product WHERE id = 1"], {"None, 4"}
    ),
    "an anti-join finds what it must not": Change(
        select(Line.week, count)
        .join(Product, Product.id == Line.product_id, isouter=True)
        .where(Product.id.is_(None))
        .group_by(Line.week),
        ["INSERT INTO product VALUES (9, 'new')", "DELETE FROM product WHERE id = 1"],
        {"1, 1"},
    ),
    "the greatest goes": Change(
        largest_lines(), ["DELETE FROM line WHERE cents = 30"], {"fruit, None"}
    ),
    "both sides of a full join lose what matched": Change(
        select(Line.week, Product.department, count)
        .join(Product, Product.id == Line.product_id, full=True)
        .group_by(Line.week, Product.department),
        ["UPDATE line SET product_id = 7 WHERE id = 1"],
        {"1, None, 2", "None, bread, 1"},
    ),
    "a join with itself changes on both sides": Change(
        select(Line.week, func.max(other.cents).label("most"))
        .join(other, other.product_id == Line.product_id)
        .group_by(Line.week),
        ["UPDATE line SET week = 5, cents = cents + 1 WHERE product_id = 3"],
        {"2, 5", "5, 31"},
    ),
    "a row comes that a full join finds nothing for": Change(
        select(Line.week, Product.department, count)
        .join(Product, Product.id == Line.product_id, full=True)
        .group_by(Line.week, Product.department),
        ["INSERT INTO line VALUES (30, 5, 99, 1, 1)"],
        {"5, None, 1"},
    ),
    "both tables of a key lose their rows": Change(
        select(Line.week, Product.department, count)
        .join(Product, Product.id == Line.product_id)
        .group_by(Line.week, Product.department),
        ["DELETE FROM line WHERE product_id = 1", "DELETE FROM product WHERE id = 1"],
        set(),
    ),
    "a condition of an outer join compares rows that it keeps in any case": Change(
        select(other.product_id, count)
        .select_from(Line)
        .join(other, other.week == Line.week)
        .join(
            Product,
            and_(Product.id == Line.product_id, Line.cents == other.cents),
            isouter=True,
        )
        .group_by(other.product_id),
        ["INSERT INTO line VALUES (30, 1, 1, 99, 1)"],
        {"1, 6", "2, 3"},
    ),
    "a full join has nothing, though one of its conditions finds something": Change(
        select(Product.department, other.week, count)
        .join(
            Line.__table__.join(inspect(other).selectable, Line.week == other.id),
            and_(Product.id == Line.product_id, Product.id == other.product_id),
            full=True,
        )
        .group_by(Product.department, other.week),
        ["INSERT INTO line VALUES (30, 4, 3, 1, 1)"],
        {"None, 2, 1"},
    ),
    "what was joined is gone on both sides": Change(
        largest_lines(),
        ["DELETE FROM line WHERE product_id = 1", "DELETE FROM product WHERE id = 1"],
        set(),
    ),
    "keys with NULLs among others": Change(
        select(Line.week, Line.product_id, count).group_by(Line.week, Line.product_id),
        [
            "INSERT INTO line VALUES (10, NULL, NULL, 1, 1), (11, NULL, 3, 1, 1)",
            "DELETE FROM line WHERE id = 1",
        ],
        {"None, 3, 2", "None, None, 2"},
    ),
    "a value changes into one that is equal": Change(
        select(Line.week, func.max(Line.weight).label("w")).where(Line.id == 1).group_by(Line.week),
        ["UPDATE line SET weight = 1.00 WHERE id = 1"],
        {"1, 1.00"},
    ),
    "an output divides where the join sees to it that it can": Change(
        select(Line.week, func.sum(other.cents / func.nullif(Line.cents, 0)).label("share"))
        .join(other, (other.product_id == Line.product_id) & (Line.cents != 0))
        .group_by(Line.week),
        ["INSERT INTO line VALUES (20, 8, 77, 0, 1)", "UPDATE line SET cents = 60 WHERE id = 3"],
        {"None, 1.50000000000000000000", "2, 4.00000000000000000000"},
    ),
    "a key divides, and what it could not was corrected before": Change(
        select((100 / Line.cents).label("part"), count).where(Line.cents != 0).group_by("part"),
        [
            "INSERT INTO line VALUES (20, 8, 77, 0, 1)",
            "UPDATE line SET cents = 50 WHERE id = 20",
            "DELETE FROM line WHERE id = 2",
        ],
        {"2.0000000000000000, 1"},
    ),
    "HAVING lets a group in and another go": Change(
        select(Line.week, count).group_by(Line.week).having(count.element > 1),
        [
            "INSERT INTO line VALUES (20, 8, 1, 1, 1), (21, 8, 1, 1, 1)",
            "DELETE FROM line WHERE id = 6",
        ],
        {"8, 2"},
    ),
    "rows without groups": Change(
        select(Line.id, Product.department, Line.weight).join(
            Product, Product.id == Line.product_id, isouter=True
        ),
        ["UPDATE product SET department = 'x' WHERE id = 3", "UPDATE line SET week = 1"],
        {"3, x, 1", "6, x, 2"},
    ),
    "rows that differ only where they are not shown": Change(
        select(Line.week, (Line.cents > 9).label("much")).distinct(),
        ["UPDATE line SET cents = 0 WHERE id = 1", "DELETE FROM line WHERE id = 2"],
        {"1, False"},
    ),
    "a change that concerns every group": Change(
        select(Line.week, count).join(Product, true()).group_by(Line.week),
        ["DELETE FROM product WHERE id = 4"],
        {"1, 6", "2, 6", "None, 6"},
    ),
    "a table is emptied": Change(by_department, ["TRUNCATE product"], {"None, 6"}),
}


@pytest.fixture
def shop(engine: Engine) -> Engine:
    with engine.begin() as conn:
        create_tables(conn)
        conn.execute(text(BEFORE))
    return engine


def rows(conn: Connection, query: Executable) -> set[str]:
    """Return the rows as text, in which 1.0 and 1.00 differ."""
    return {", ".join(map(str, row)) for row in conn.execute(query)}


@pytest.mark.parametrize("name", CHANGES)
def test_groups_are_right_when(shop: Engine, name: str) -> None:
    query, statements, new = CHANGES[name]
    kept = KeptGroups(shop, query)
    kept.create()
    with shop.connect() as conn:
        before = rows(conn, kept.stored())
    run(shop, *statements)

    with shop.connect() as conn:
        assert kept.differences(conn, kept.current()) == []
        assert rows(conn, kept.current()) - before == new
    with shop.begin() as conn:
        kept.apply(conn)
    with shop.connect() as conn:
        assert kept.differences(conn, kept.stored()) == []
        assert rows(conn, kept.stored()) - before == new


def test_what_the_change_tells_is_reported(shop: Engine) -> None:
    kept = KeptGroups(shop, select(Line.week, count).group_by(Line.week))
    kept.create()
    run(shop, "UPDATE line SET week = 7 WHERE id IN (1, 3)")

    with shop.begin() as conn:
        found = kept.apply(conn)

    assert (found.pending, found.done) == (4, True)
    assert (found.groups, found.deleted, found.inserted) == (3, 2, 3)


def test_groups_that_stay_the_same_are_not_written(shop: Engine) -> None:
    kept = KeptGroups(
        shop, select(Line.week, func.max(Line.cents).label("most")).group_by(Line.week)
    )
    kept.create()
    run(shop, "UPDATE line SET cents = 19 WHERE id = 1")

    with shop.begin() as conn:
        found = kept.apply(conn)

    assert (found.groups, found.deleted, found.inserted) == (1, 0, 0)


def test_a_writer_sees_its_own_changes_in_what_is_shown_now(shop: Engine) -> None:
    kept = KeptGroups(shop, by_department)
    kept.create()
    with shop.connect() as writer:
        writer.execute(text("INSERT INTO product VALUES (9, 'mine')"))

        assert kept.differences(writer, kept.current()) == []
        assert "mine, 1" in rows(writer, kept.current())
    with shop.connect() as conn:
        assert kept.differences(conn, kept.current()) == []


def test_nothing_is_computed_where_nothing_is_pending(shop: Engine) -> None:
    kept = KeptGroups(shop, by_department)
    kept.create()

    with shop.begin() as conn:
        found = kept.apply(conn)

    assert (found.pending, found.groups, found.deleted, found.inserted) == (0, 0, 0, 0)


def test_keys_that_cannot_be_hashed_are_found_out_before(shop: Engine) -> None:
    run(shop, "ALTER TABLE product ALTER department TYPE bit(3) USING NULL")
    several = select(Line.week, Product.department, count).join(
        Product, Product.id == Line.product_id
    )
    two = KeptGroups(shop, several.group_by(Line.week, Product.department))
    two.create()
    with shop.connect() as conn:
        with pytest.raises(ProgrammingError, match="could not identify an extended hash function"):
            conn.execute(probe(two.plan, two.pending()))
        conn.rollback()

    one = KeptGroups(shop, by_department)
    one.create()
    with shop.begin() as conn:
        conn.execute(probe(one.plan, one.pending()))
