"""Which schema a revision works in. Revisions may import this module, for it never changes."""

import re

from alembic import op

DEFAULT_SCHEMA = "datapatterns"


def library_schema() -> str:
    """Return the name of the library's schema in the running migration, safe to put into SQL.

    An application that runs these revisions from its own Alembic environment names another
    schema in ``config.attributes["datapatterns_schema"]``.
    """
    migration = op.get_context()
    config = migration.config
    name = (config.attributes if config is not None else {}).get(
        "datapatterns_schema", DEFAULT_SCHEMA
    )
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", name) or name.startswith("pg_"):
        raise ValueError(f"{name!r} cannot name the library's schema; use a-z, 0-9 and _")
    return str(name)


def run(template: str) -> None:
    """Execute the statements of ``template`` with ``{schema}`` replaced by the library's schema."""
    sql = template.replace("{schema}", library_schema())
    migration = op.get_context()
    if migration.as_sql:
        migration.impl.static_output(f"{sql.strip().removesuffix(';')};")
        return
    # Without parameters, % stays what it is and one string may hold several statements.
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
