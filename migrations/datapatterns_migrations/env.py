"""Runs the library's migrations on the connection and schema that the caller put in the config."""

from alembic import context

schema: str = context.config.attributes["datapatterns_schema"]

if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql",
        version_table="library_version",
        version_table_schema=schema,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        for statement in context.config.attributes["datapatterns_preamble"]:
            context.get_context().impl.static_output(f"{statement};\n")
        context.run_migrations()
else:
    context.configure(
        connection=context.config.attributes["connection"],
        version_table="library_version",
        version_table_schema=schema,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()
