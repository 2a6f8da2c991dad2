from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Engine, MetaData, inspect, text

from datapatterns.event_sourcing.schema import event_tables
from datapatterns.sql.migrating import downgrade, upgrade


def test_the_tables_are_those_that_the_migration_makes(engine: Engine) -> None:
    tables = event_tables("other_place")
    ours = MetaData(schema="other_place")
    declared = (
        tables.event_types,
        tables.streams,
        tables.events,
        tables.snapshots,
        tables.import_chunks,
    )
    for table in declared:
        table.to_metadata(ours)
    names = {table.name for table in declared}

    with engine.begin() as conn:
        upgrade(conn, schema="other_place")
        context = MigrationContext.configure(
            conn,
            opts={
                "compare_type": True,
                "include_schemas": True,
                "include_name": lambda name, kind, _: (
                    name == "other_place" if kind == "schema" else kind != "table" or name in names
                ),
            },
        )
        assert compare_metadata(context, ours) == []
        for table in declared:
            found = inspect(conn).get_check_constraints(table.name, schema="other_place")
            assert {check["name"] for check in found} == {
                str(check.name) for check in table.constraints if isinstance(check, CheckConstraint)
            }
            found_key = inspect(conn).get_pk_constraint(table.name, schema="other_place")
            assert found_key["name"] == f"pk_{table.name}"


def test_the_migration_can_be_undone_and_done_again(engine: Engine) -> None:
    schema = "there_and_back"
    with engine.begin() as conn:
        upgrade(conn, "dp0002", schema=schema)
        first = sorted(inspect(conn).get_table_names(schema=schema))
        downgrade(conn, "dp0001", schema=schema)
        left = {*inspect(conn).get_table_names(schema=schema)} & {"event", "stream", "snapshot"}
        routines = conn.scalar(
            text("SELECT count(*) FROM pg_proc WHERE pronamespace = CAST(:schema AS regnamespace)"),
            {"schema": schema},
        )
        sequences = inspect(conn).get_sequence_names(schema=schema)
        upgrade(conn, "dp0002", schema=schema)

        assert (left, routines) == (set(), 0)
        assert "event_position" not in sequences
        assert sorted(inspect(conn).get_table_names(schema=schema)) == first
