"""The shop's Alembic environment."""

import os

from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, make_url

metadata = MetaData()
Table("products", metadata, Column("product_id", Integer, primary_key=True), Column("name", Text))

# Where the tables of datapatterns live; leave it out for "datapatterns".
context.config.attributes["datapatterns_schema"] = "patterns"

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
else:
    url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
    with create_engine(url).connect() as conn:
        context.configure(connection=conn, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()
