"""A trigger of the application writes to the rows whose writing fired it."""

import pytest
from sqlalchemy import Connection, Engine

from datapatterns.index_table import IndexTable
from tests.fixtures.index_tables import assert_agrees, build, order_line, run, tables

pytestmark = pytest.mark.postgres

by_product = IndexTable(
    "line_by_product", on=[order_line.c.product_id], include=[order_line.c.note]
)
by_note = IndexTable("line_by_note", on=[order_line.c.note], unique=True)

# By event: what the trigger does to a row that was written. Nothing is done twice, so it ends.
TRIGGERS = {
    "puts the key back": (
        "UPDATE",
        "UPDATE order_line SET product_id = 1 WHERE id = NEW.id AND product_id <> 1",
    ),
    "changes the key again": (
        "INSERT OR UPDATE",
        "UPDATE order_line SET product_id = 9 WHERE id = NEW.id AND product_id NOT IN (1, 9)",
    ),
    "changes what is included": (
        "INSERT OR UPDATE",
        "UPDATE order_line SET note = note || '!' WHERE id = NEW.id AND right(note, 1) <> '!'",
    ),
    "gives a new primary key": (
        "INSERT OR UPDATE",
        "UPDATE order_line SET id = id + 100 WHERE id = NEW.id AND id < 100",
    ),
    "puts another row in its place": (
        "UPDATE",
        (
            "INSERT INTO order_line SELECT NEW.id - 20, NEW.product_id, NEW.note || '?'"
            " WHERE NEW.id > 20 AND NOT EXISTS (SELECT FROM order_line WHERE id = NEW.id - 20)"
        ),
    ),
    "deletes the row": ("INSERT OR UPDATE", "DELETE FROM order_line WHERE id = NEW.id"),
    "brings the row back": ("DELETE", "INSERT INTO order_line SELECT OLD.*"),
    "brings another row back": (
        "DELETE",
        "INSERT INTO order_line VALUES (OLD.id, OLD.product_id, OLD.note || '?')",
    ),
}
STATEMENTS = [
    "INSERT INTO order_line VALUES (3, 3, 'c'), (4, 4, 'd')",
    "UPDATE order_line SET product_id = product_id + 4",
    "UPDATE order_line SET note = note || '-'",
    "UPDATE order_line SET id = id + 10",
    "UPDATE order_line SET product_id = product_id + 1 WHERE id = 2",
    "UPDATE order_line SET note = note || '+' WHERE id = 2",
    "UPDATE order_line SET id = id + 20 WHERE id = (SELECT min(id) FROM order_line)",
    "DELETE FROM order_line WHERE id = 1",
    (
        "INSERT INTO order_line VALUES (1, 5, 'e'), (6, 6, 'f')"
        " ON CONFLICT (id) DO UPDATE SET product_id = excluded.product_id"
    ),
]


@pytest.fixture(autouse=True)
def indexed(engine: Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as conn:
        run(conn, "INSERT INTO order_line VALUES (1, 1, 'a'), (2, 1, 'b')")
    build(engine, by_product)
    build(engine, by_note)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("fires", ["ROW", "STATEMENT"])
@pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS.keys())
def test_what_a_trigger_does_to_written_rows_is_not_missed(
    engine: Engine, trigger: tuple[str, str], fires: str, level: str
) -> None:
    with engine.connect().execution_options(isolation_level=level) as conn:
        add_trigger(conn, *trigger, fires=fires)
        for statement in STATEMENTS:
            run(conn, statement)
            assert_agrees(conn, by_product)
            assert_agrees(conn, by_note)


def add_trigger(conn: Connection, event: str, statement: str, *, fires: str) -> None:
    declared = referencing = ""
    if fires == "STATEMENT":
        # Its name comes before those of the index's triggers, and so does it.
        written = "OLD" if event == "DELETE" else "NEW"
        declared = f"DECLARE {written} record;"
        referencing = f"REFERENCING {written} TABLE AS written"
        statement = f"FOR {written} IN TABLE written LOOP {statement}; END LOOP"
    conn.exec_driver_sql(
        f"CREATE FUNCTION also_write() RETURNS trigger LANGUAGE plpgsql AS $$ {declared}"
        f" BEGIN {statement}; RETURN NULL; END $$"
    )
    for number, one in enumerate(event.split(" OR ")):
        conn.exec_driver_sql(
            f"CREATE TRIGGER a_trigger_{number} AFTER {one} ON order_line {referencing}"
            f" FOR EACH {fires} EXECUTE FUNCTION also_write()"
        )
