"""Which schema a revision works in, and the record of it. Revisions may import this module.

The record is kept by the revisions themselves, because they run in two kinds of environment: ours,
and an application's own Alembic environment that includes them. What the version table of the
latter says of our branch depends on the application's revisions (a revision that depends on
ours hides it), so it cannot tell where our tables stand; ``library_migration`` can.
"""

import re
from pathlib import Path

from alembic import op
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError

DEFAULT_SCHEMA = "datapatterns"
_OUR_REVISIONS = Path(__file__).parent / "versions"


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
        raise CommandError(f"{name!r} cannot name the library's schema; use a-z, 0-9 and _")
    return str(name)


def run(template: str) -> None:
    """Execute the statements of ``template`` with ``{schema}`` replaced by the library's schema."""
    migration = op.get_context()
    if _record not in migration.on_version_apply_callbacks:
        migration.on_version_apply_callbacks = (*migration.on_version_apply_callbacks, _record)
    _execute(migration, template.replace("{schema}", library_schema()))


def _execute(migration: MigrationContext, sql: str) -> None:
    if migration.as_sql:
        migration.impl.static_output(f"{sql.strip().removesuffix(';')};")
        return
    # Without parameters, % stays what it is and one string may hold several statements.
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})


def _record(*, ctx: MigrationContext, step: MigrationInfo, **_: object) -> None:
    """Write down where our tables stand after ``step``, and refuse a step from elsewhere."""
    if not _is_ours(step):
        return
    below = step.down_revision_ids[0] if step.down_revision_ids else None
    source, target = (
        (below, step.up_revision_id) if step.is_upgrade else (step.up_revision_id, below)
    )
    if target is None:  # the record went with the first revision
        return
    schema = library_schema()
    if not ctx.as_sql:
        _refuse_step_from_elsewhere(schema, source)
    _execute(
        ctx,
        f"INSERT INTO {schema}.library_migration (revision, version_table)"  # noqa: S608 -- checked
        f" VALUES ('{target}', '{_version_table(ctx)}')",
    )


def _is_ours(step: MigrationInfo) -> bool:
    path = getattr(step.up_revision, "path", None)
    return path is not None and Path(path).parent.samefile(_OUR_REVISIONS)


def _refuse_step_from_elsewhere(schema: str, source: str | None) -> None:
    found = (
        op.get_bind()
        .exec_driver_sql(
            f"SELECT revision, version_table FROM {schema}.library_migration"  # noqa: S608
            " ORDER BY migration_id DESC LIMIT 1"
        )
        .one_or_none()
    )
    if (found.revision if found else None) != source:
        stands, keeper = (found.revision, found.version_table) if found else ("nothing", "nobody")
        raise CommandError(
            f"this step starts from {source or 'nothing'}, but the tables in schema {schema} are at"
            f" {stands}, as {keeper} counts; to go on from here, stamp that revision first:"
            f" alembic stamp {stands}"
        )


def _version_table(ctx: MigrationContext) -> str:
    schema = ctx.version_table_schema
    if schema is None and not ctx.as_sql:
        schema = ctx.dialect.default_schema_name
    name = f"{schema}.{ctx.version_table}" if schema else ctx.version_table
    return name.replace("'", "''")
