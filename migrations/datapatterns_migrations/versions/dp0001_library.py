"""The library's schema, and the record of its migrations.

Revision ID: dp0001
Revises:
"""

from datapatterns_migrations.placement import run

revision = "dp0001"
down_revision = None
branch_labels = ("datapatterns",)
depends_on = None


def upgrade() -> None:
    # CREATE SCHEMA IF NOT EXISTS wants CREATE on the database even where the schema exists
    # already; a role that was only given the schema must get by.
    run("""
    DO $$
    BEGIN
        IF to_regnamespace('{schema}') IS NULL THEN
            CREATE SCHEMA {schema};
        END IF;
    END
    $$;

    -- The last row says where the tables stand and which Alembic version table counts them.
    -- If it exists already, the step is refused when it is recorded, with advice.
    CREATE TABLE IF NOT EXISTS {schema}.library_migration (
        migration_id  bigint GENERATED ALWAYS AS IDENTITY,
        revision      text NOT NULL,
        version_table text NOT NULL,
        migrated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT pk_library_migration PRIMARY KEY (migration_id)
    );
    """)


def downgrade() -> None:
    # The schema stays: it may hold Alembic's own version table, and what users put there.
    run("DROP TABLE {schema}.library_migration")
