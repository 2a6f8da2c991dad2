"""Runs the library's migrations on the connection and schema that the caller put in the config."""

from alembic import context
from sqlalchemy import Connection

conn: Connection = context.config.attributes["connection"]
schema: str = context.config.attributes["datapatterns_schema"]

context.configure(
    connection=conn,
    version_table="library_version",
    version_table_schema=schema,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
