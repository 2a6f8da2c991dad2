"""The shop's Alembic environment; it migrates the shard that it is given."""

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", transaction_per_migration=True)
else:
    # Each revision commits by itself, so that what is done stays when the next must wait.
    context.configure(
        connection=context.config.attributes["connection"], transaction_per_migration=True
    )
with context.begin_transaction():
    context.run_migrations()
