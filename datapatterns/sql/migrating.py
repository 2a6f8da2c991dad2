"""Bring the library's tables to a revision; the only way they are ever created."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.schema import CreateSchema

import datapatterns_migrations
from datapatterns.sql.metadata import DEFAULT_SCHEMA, checked_schema


def upgrade(conn: Connection, revision: str = "head", *, schema: str = DEFAULT_SCHEMA) -> None:
    """Upgrade the library's tables in ``schema``, in the caller's transaction."""
    conn.execute(CreateSchema(checked_schema(schema), if_not_exists=True))
    command.upgrade(_config(conn, schema), revision)


def _config(conn: Connection, schema: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(datapatterns_migrations.__file__).parent))
    config.attributes["connection"] = conn
    config.attributes["datapatterns_schema"] = schema
    return config
