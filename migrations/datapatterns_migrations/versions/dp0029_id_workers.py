"""Numbers that processes lease to make ids with.

Revision ID: dp0029
Revises: dp0028
"""

from datapatterns_migrations.placement import run

revision = "dp0029"
down_revision = "dp0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    run("""
        -- Nobody ever made an id with this number of a millisecond above the ceiling.
        CREATE TABLE {schema}.id_worker (
            worker int NOT NULL,
            holder uuid,
            lease_until timestamptz,
            ms_ceiling bigint NOT NULL DEFAULT 0,
            CONSTRAINT pk_id_worker PRIMARY KEY (worker),
            CONSTRAINT ck_id_worker_worker CHECK (worker BETWEEN 0 AND 63),
            CONSTRAINT ck_id_worker_lease_until
                CHECK ((holder IS NULL) = (lease_until IS NULL)),
            CONSTRAINT ck_id_worker_ms_ceiling CHECK (ms_ceiling >= 0)
        );
        INSERT INTO {schema}.id_worker (worker) SELECT generate_series(0, 63);
    """)


def downgrade() -> None:
    run("DROP TABLE {schema}.id_worker;")
