"""Whatever columns are captured, nobody fails to write them."""

import pytest
from sqlalchemy import Connection, text

from datapatterns.change_log import ChangeLog
from datapatterns.errors import CaptureRefusedError

LOG = ChangeLog()
VARIABLES = (
    "found", "logged", "new", "old", "tg_argv", "tg_level", "tg_name", "tg_nargs", "tg_op",
    "tg_relid", "tg_relname", "tg_table_name", "tg_table_schema", "tg_when",
)  # fmt: skip


@pytest.mark.parametrize("name", VARIABLES)
def test_a_column_may_be_called_as_a_variable_of_triggers_is(conn: Connection, name: str) -> None:
    conn.execute(text(f'CREATE TABLE item (id int, "{name}" int) PARTITION BY RANGE (id)'))
    conn.execute(text("CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (0) TO (9)"))
    log_name = LOG.capture(conn, "item", ["id", name])

    conn.execute(text("INSERT INTO item VALUES (1, 5)"))
    conn.execute(text(f'UPDATE item SET "{name}" = 6'))  # noqa: S608
    conn.execute(text("DELETE FROM item"))

    logged = f'SELECT change_sign, "{name}" FROM datapatterns.{log_name} ORDER BY 2, 1'  # noqa: S608
    assert conn.execute(text(logged)).all() == [(-1, 5), (1, 5), (-1, 6), (1, 6)]


def test_only_such_a_name_changes_the_function(conn: Connection) -> None:
    conn.execute(text("CREATE TABLE item (id int, found int)"))
    LOG.capture(conn, "item", ["id"])
    body = text("SELECT prosrc FROM pg_proc WHERE proname ~ '^capture_item_'")
    before = conn.execute(body).scalar_one()

    LOG.capture(conn, "item", ["found"])

    assert "variable_conflict" not in before
    assert "variable_conflict" in conn.execute(body).scalar_one()


def test_columns_that_cannot_be_compared_together_are_refused(conn: Connection) -> None:
    conn.execute(text("CREATE TABLE item (hashed xid, sorted tsvector)"))
    LOG.capture(conn, "item", ["hashed"])

    with pytest.raises(CaptureRefusedError, match="capture one kind"), conn.begin_nested():
        LOG.capture(conn, "item", ["sorted"])

    conn.execute(text("INSERT INTO item VALUES ('1', 'a')"))
    conn.execute(text("UPDATE item SET hashed = '2', sorted = 'b'"))


def test_columns_that_are_too_many_to_be_compared_are_refused(conn: Connection) -> None:
    names = [f"c{number}" for number in range(840)]
    definition = ", ".join(f"{name} numeric" for name in names)
    conn.execute(text(f"CREATE TABLE item ({definition})"))

    with pytest.raises(CaptureRefusedError, match="840 columns are too many"), conn.begin_nested():
        LOG.capture(conn, "item", names)

    LOG.capture(conn, "item", names[:830])
    conn.execute(text("INSERT INTO item (c1) VALUES (1)"))
    conn.execute(text("UPDATE item SET c1 = 2"))
