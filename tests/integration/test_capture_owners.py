"""Captured tables whose owner is no superuser."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection

from datapatterns.change_log import ChangeLog
from datapatterns.change_log.releasing import narrow
from datapatterns.errors import MissingRightsError

pytestmark = pytest.mark.postgres

LOG = ChangeLog()
BECOME_OWNER = "SET LOCAL ROLE datapatterns_test_owner"


@pytest.fixture
def owned(conn: Connection) -> str:
    """A table whose owner may create in the library's schema."""
    for statement in (
        "CREATE ROLE datapatterns_test_owner",
        "GRANT USAGE, CREATE ON SCHEMA datapatterns TO datapatterns_test_owner",
        "GRANT ALL ON ALL TABLES IN SCHEMA datapatterns TO datapatterns_test_owner",
        "CREATE TABLE owned (id int, more int, note text)",
        "ALTER TABLE owned OWNER TO datapatterns_test_owner",
    ):
        conn.exec_driver_sql(statement)
    return "owned"


def test_the_owner_goes_on_after_a_superuser_has_captured_more(
    conn: Connection, owned: str
) -> None:
    conn.exec_driver_sql(BECOME_OWNER)
    LOG.capture(conn, owned, ["id"])
    conn.exec_driver_sql("RESET ROLE")
    LOG.capture(conn, owned, ["more"])
    conn.exec_driver_sql(BECOME_OWNER)

    narrow(conn, owned, ["id"], schema=LOG.schema)
    LOG.capture(conn, owned, ["note"])
    LOG.release(conn, owned)


def let_go_of_a_column(conn: Connection, table: str) -> None:
    narrow(conn, table, ["id"], schema=LOG.schema)


@pytest.mark.parametrize("change", [let_go_of_a_column, LOG.release])
def test_who_does_not_own_a_log_is_told_so(
    conn: Connection, owned: str, change: Callable[[Connection, str], None]
) -> None:
    LOG.capture(conn, owned, ["id", "more"])
    conn.exec_driver_sql(BECOME_OWNER)

    with pytest.raises(MissingRightsError):
        change(conn, owned)
