"""`datapatterns migrate`: create, upgrade, look at and remove the library's tables."""

from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Group

if TYPE_CHECKING:
    from datapatterns.migrations import Revision


@click.group(cls=Group)
def migrate() -> None:
    """Create and upgrade the library's tables in every database.

    They live in a schema of their own. Each database is one transaction: it is migrated, or it
    is as before. When a run stops half-way through the databases, run it again.

    \b
      datapatterns migrate upgrade --app shop.data:layer       main database and shards
      datapatterns migrate upgrade --database-url postgresql://ann@db.example/shop
      datapatterns migrate check || echo "deploy the migrations first"
    """  # noqa: D301


_revision = click.option(
    "--revision",
    default="head",
    show_default=True,
    help="Where to stop; `datapatterns migrate status` lists those that are pending.",
)
_wait = click.option(
    "--wait-seconds",
    type=click.FloatRange(min=0.001, max=86_400),
    default=60.0,
    show_default=True,
    help="How long to wait for a migration that somebody else runs.",
)


@migrate.command()
@_revision
@_wait
@click.option("--dry-run", is_flag=True, help="Only list what would run.")
@pass_invocation
def upgrade(invocation: Invocation, *, revision: str, wait_seconds: float, dry_run: bool) -> None:
    """Create the tables, or bring them up to date.

    Safe to run from several places at once, and again: what is done is not done twice.
    """
    migrations = invocation.layer().migrations
    if dry_run:
        _show_plan(invocation, migrations.plan(revision), "would upgrade")
        return
    migrations.upgrade(
        revision,
        wait_seconds=wait_seconds,
        report=lambda name, ran: _show_plan(invocation, {name: ran}, "upgraded"),
    )


@migrate.command()
@click.argument("revision")
@_wait
@click.option("--dry-run", is_flag=True, help="Only list what would be undone.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_invocation
def downgrade(
    invocation: Invocation, *, revision: str, wait_seconds: float, dry_run: bool, yes: bool
) -> None:
    """Take the tables back to REVISION, and LOSE THE DATA in those that go.

    \b
      datapatterns migrate downgrade dp0004 --dry-run
      datapatterns migrate downgrade base --yes       everything the library has stored
    """  # noqa: D301
    migrations = invocation.layer().migrations
    planned = migrations.plan(revision, down=True)
    if dry_run:
        _show_plan(invocation, planned, "would undo")
        return
    if any(planned.values()) and not yes:
        _ask(invocation, planned)
    migrations.downgrade(
        revision,
        wait_seconds=wait_seconds,
        report=lambda name, undone: _show_plan(invocation, {name: undone}, "undid"),
    )


def _ask(invocation: Invocation, planned: dict[str, "tuple[Revision, ...]"]) -> None:
    databases = ", ".join(name for name, steps in planned.items() if steps)
    titles = {step.revision: step.title for steps in planned.values() for step in steps}
    invocation.output.note(f"This drops tables with all they hold, in {databases}:")
    for revision, title in titles.items():
        invocation.output.note(f"  {revision}  {title}")
    invocation.output.ask()


@migrate.command()
@pass_invocation
def status(invocation: Invocation) -> None:
    """Show where the tables of every database stand; changes nothing."""
    rows = [
        {
            "database": name,
            "schema": found.schema,
            "revision": found.revision,
            "state": found.state,
            "pending": len(found.pending),
            "counted_in": found.version_table,
        }
        for name, found in invocation.layer().migrations.status().items()
    ]
    invocation.output.table(rows)


@migrate.command()
@click.option(
    "--revision-only",
    is_flag=True,
    help="Trust the recorded revision; needs only the right to read it.",
)
@pass_invocation
def check(invocation: Invocation, *, revision_only: bool) -> None:
    """Exit with 0 only if every database has exactly the tables that this version needs.

    To compare, the migrations run in a schema beside the real one, which is then undone; this
    needs the right to create a schema. Exits with 2 where tables are older or newer, with 5 where
    they were changed by hand.
    """
    invocation.layer().migrations.check(revision_only=revision_only)
    invocation.output.note("The tables are up to date.")


@migrate.command()
@_revision
@click.option("--from", "start", default="base", show_default=True, help="Where to start.")
@pass_invocation
def sql(invocation: Invocation, *, revision: str, start: str) -> None:
    """Print the SQL instead of running it; needs no database.

    \b
      datapatterns migrate sql | psql -v ON_ERROR_STOP=1 "$DATABASE_URL"
      datapatterns migrate sql --from dp0004 --revision dp0008
    """  # noqa: D301
    migrations = invocation.layer(needs_server=False).migrations
    script = migrations.sql(revision, start=start)
    if invocation.output.as_json:
        invocation.output.values({"sql": script})
    else:
        invocation.output.text(script)


def _show_plan(
    invocation: Invocation, planned: dict[str, "tuple[Revision, ...]"], done: str
) -> None:
    """Print what ran where; for people a line for each database, for programs one for each step."""
    output = invocation.output
    if output.as_json:
        output.table(
            [
                {"database": name, "revision": step.revision, "title": step.title}
                for name, steps in planned.items()
                for step in steps
            ]
        )
        return
    for name, steps in planned.items():
        what = ", ".join(step.revision for step in steps) or "nothing"
        output.text(f"{name}: {done} {what}")
