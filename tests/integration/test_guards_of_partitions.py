"""A partition is guarded as the whole table is, and gives nobody more rights."""

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from datapatterns.sql.schema_comparison import schema_differences
from tests.fixtures.partitions import fill, partitioning, partitions_themselves, store

pytestmark = partitions_themselves


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DROP TRIGGER raise_fence ON datapatterns.event_p30", "partition event_p30 without"),
        ("DROP TRIGGER moves_only ON datapatterns.event_rest", "partition event_rest without"),
        (
            "ALTER TABLE datapatterns.event_p20 DISABLE TRIGGER append_only",
            "event_p20 without trigger append_only",
        ),
        (
            "ALTER TABLE datapatterns.event_p30 DROP CONSTRAINT uq_event_p30_stream_id_version",
            "uq_event_stream_id_version",
        ),
        ("ALTER TABLE datapatterns.event ADD COLUMN more int", "event.more"),
    ],
)
def test_a_partition_that_lacks_a_guard_is_drift(parted: Engine, change: str, told: str) -> None:
    with parted.connect() as conn:
        conn.execute(text(change))
        assert told in " ".join(schema_differences(conn))


INSERT = (
    "INSERT INTO datapatterns.event_p30 (stream_id, version, at, event_id, type_id, data)"
    " VALUES (99, 1, now(), gen_random_uuid(), 1, '{}')"
)


def test_what_is_written_into_a_partition_raises_the_fence_too(parted: Engine) -> None:
    fill(parted, 16)

    def passed() -> bool:
        """Tell whether a reader passes a position that a direct insert holds."""
        with parted.connect() as late, parted.begin() as conn:
            late.execute(text(INSERT))
            mark = store.high_water_mark(conn)
            drawn = conn.scalar(text("SELECT last_value FROM datapatterns.event_position"))
            return mark >= int(drawn or 0)

    fenced = passed()
    with parted.begin() as conn:
        conn.execute(text("ALTER TABLE datapatterns.event_p30 DISABLE TRIGGER raise_fence"))

    assert not fenced
    assert passed()  # the control: without the partition's own trigger nothing holds it back


@pytest.mark.parametrize("table", ["event", "event_p20", "event_rest"])
@pytest.mark.parametrize("change", ["UPDATE {} SET version = 9", "DELETE FROM {}", "TRUNCATE {}"])
def test_a_partition_is_append_only_by_itself(parted: Engine, table: str, change: str) -> None:
    fill(parted, 40)
    with parted.begin() as conn, pytest.raises(DBAPIError, match="append-only"):
        conn.exec_driver_sql(change.format(f"datapatterns.{table}"))


def test_rights_stay_with_the_table_and_leave_the_partitions(engine: Engine) -> None:
    rights = text(
        "SELECT c.relname, a.privilege_type, a.is_grantable FROM pg_class AS c,"
        " aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee"
        " WHERE r.rolname = 'pg_monitor' AND c.relnamespace = 'datapatterns'::regnamespace"
    )
    column = text("SELECT has_column_privilege('pg_monitor', 'datapatterns.event', 'at', 'UPDATE')")
    with engine.begin() as conn:
        conn.execute(
            text(
                "GRANT SELECT ON datapatterns.event TO pg_monitor WITH GRANT OPTION;"
                " GRANT UPDATE (at) ON datapatterns.event TO pg_monitor"
            )
        )
    partitioning.partition(engine, size=10)
    with engine.begin() as conn:
        parted = conn.execute(rights).all(), conn.scalar(column)
        partitioning.undo(conn)
        undone = conn.execute(rights).all(), conn.scalar(column)

    assert parted == undone == ([("event", "SELECT", True)], True)


def test_default_privileges_give_nobody_a_right_on_events(engine: Engine) -> None:
    rights = text(
        "SELECT count(*) FROM pg_class AS c, aclexplode(c.relacl) AS a"
        " WHERE c.relname LIKE 'event%' AND c.relnamespace = 'datapatterns'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND a.grantee = 'pg_monitor'::regrole"
    )
    with engine.begin() as conn:
        conn.execute(
            text(
                "ALTER DEFAULT PRIVILEGES IN SCHEMA datapatterns"
                " GRANT INSERT, UPDATE ON TABLES TO pg_monitor"
            )
        )
    partitioning.partition(engine, size=10)
    with engine.begin() as conn:
        assert conn.scalar(rights) == 0
        partitioning.undo(conn)
        assert conn.scalar(rights) == 0
