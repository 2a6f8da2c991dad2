"""`datapatterns shards migrate` and what belongs to it: the tables of all shards."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.output import Output
from datapatterns_cli.shards_cluster import cluster_option, load_cluster
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.sharding import MigrationPace, ShardPlan, ShardRun

Scope = Literal["all", "application", "library"]

_PACE = [
    click.option("--canary", metavar="SHARD", help="Goes first, alone.  [default: first by name]"),
    click.option(
        "--parallel",
        type=click.IntRange(1, 64),
        default=4,
        show_default=True,
        help="How many of the others at once.",
    ),
    click.option(
        "--lock-seconds",
        type=click.FloatRange(min=0.001, max=3600),
        default=2.0,
        show_default=True,
        help="How long a statement waits for a table; who comes after it waits behind it.",
    ),
    click.option(
        "--patience-seconds",
        type=click.FloatRange(min=0, max=86_400),
        default=60.0,
        show_default=True,
        help="For how long to try again, with pauses, what could not be locked.",
    ),
    click.option(
        "--wait-seconds",
        "turn_seconds",
        type=click.FloatRange(min=0, max=86_400),
        default=60.0,
        show_default=True,
        help="How long to wait for a migration that somebody else runs.",
    ),
    click.option(
        "--skip-unavailable",
        is_flag=True,
        help="Go on without shards that do not answer; ends with 1 if there are any.",
    ),
]
_dry_run = click.option("--dry-run", is_flag=True, help="Only list what would run where.")


def _paced(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_PACE):
        command = option(command)
    return command


@click.command(cls=Command)
@click.argument("revision", default="heads")
@click.option(
    "--of",
    type=click.Choice(["all", "application", "library"]),
    default="all",
    show_default=True,
    help="Whose tables; `all` brings the library's to their newest, then the application's.",
)
@_paced
@_dry_run
@click.option("--sql", "as_sql", is_flag=True, help="Print the application's SQL; runs nothing.")
@cluster_option
@pass_invocation
def migrate(
    invocation: Invocation,
    /,
    where: str,
    revision: str,
    of: Scope,
    *,
    dry_run: bool,
    as_sql: bool,
    **pace: Any,  # noqa: ANN401 -- what MigrationPace takes
) -> None:
    """Upgrade the tables of all shards to REVISION of the application's Alembic environment.

    The canary first, then several at once; the first error lets no further shard begin. Run the
    same again: it does what is left.

    \b
      datapatterns shards migrate --dry-run --cluster shop.data:cluster
      datapatterns shards migrate --canary s3 --cluster shop.data:cluster
      datapatterns shards migrate dp0032 --of library --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        migrations = cluster.migrations
        if dry_run or as_sql:
            skip = bool(pace["skip_unavailable"])
            plans = migrations.plan(revision, of=of, skip_unavailable=skip)
            if not as_sql:
                _show_plans(invocation.output, plans)
                return
            starts = {each.shard: each.heads for each in migrations.status()}
            for start in sorted({starts[plan.shard] for plan in plans if plan.application}):
                on = [plan.shard for plan in plans if starts[plan.shard] == start]
                _show_sql(invocation.output, on, migrations.sql(revision, start=start))
            return
        runs = migrations.upgrade(
            revision, of=of, pace=_pace(pace), report=_progress(invocation.output)
        )
    _end(invocation.output, runs)


@click.command(cls=Command)
@click.argument("revision")
@click.option(
    "--of",
    type=click.Choice(["application", "library"]),
    default="application",
    show_default=True,
    help="Whose tables.",
)
@_paced
@_dry_run
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_option
@pass_invocation
def downgrade(
    invocation: Invocation,
    /,
    where: str,
    revision: str,
    of: Literal["application", "library"],
    *,
    dry_run: bool,
    yes: bool,
    **pace: Any,  # noqa: ANN401 -- what MigrationPace takes
) -> None:
    """Take the tables of all shards back to REVISION, and LOSE THE DATA in those that go.

    \b
      datapatterns shards downgrade 4f3c2d --dry-run --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        skip = bool(pace["skip_unavailable"])
        plans = cluster.migrations.plan(revision, of=of, down=True, skip_unavailable=skip)
        if dry_run:
            _show_plans(invocation.output, plans)
            return
        changed = [plan.shard for plan in plans if not plan.is_done]
        if changed and not yes:
            invocation.output.note(
                f"This drops what later revisions have made, on {', '.join(changed)}."
            )
            invocation.output.ask()
        runs = cluster.migrations.downgrade(
            revision, of=of, pace=_pace(pace), report=_progress(invocation.output)
        )
    _end(invocation.output, runs)


@click.command(cls=Command)
@cluster_option
@pass_invocation
def status(invocation: Invocation, where: str) -> None:
    """Show where the tables of each shard stand, and what differs from most of them.

    Catalogs are compared, not only revisions. Ends with 1 if one differs, has an index that is
    half built, or does not answer.

    \b
      datapatterns shards status --cluster shop.data:cluster
    """  # noqa: D301
    output = invocation.output
    with load_cluster(where) as cluster:
        found = cluster.migrations.status()
        # The control database may have no tables yet.
        runs = {run.shard: run.state for run in cluster.migrations.last_run_if_any()}
    output.table(
        [
            {
                "shard": each.shard,
                "state": each.state,
                "revision": ", ".join(each.heads) or None,
                "library": each.library,
                "server": each.server,
                "last_run": runs.get(each.shard),
                "fingerprint": each.fingerprint and each.fingerprint[:12],
                "differences": [*map(str, each.differences)]
                if output.as_json
                else len(each.differences),
                "invalid_indexes": [*each.invalid_indexes]
                if output.as_json
                else len(each.invalid_indexes),
            }
            for each in found
        ]
    )
    for each in found:
        for difference in each.differences:
            output.note(f"{each.shard}: {difference}")
        for index in each.invalid_indexes:
            output.note(f"{each.shard}: index {index} is half built; drop it, or let its build end")
        if each.other_orders:
            tables = ", ".join(each.other_orders)
            output.note(f"{each.shard}: columns stand in another order, which is no harm: {tables}")
    if len({each.server for each in found if each.server is not None}) > 1:
        output.note("servers of several major versions may put the same into other words")
    if not all(each.is_sound for each in found):
        click.get_current_context().exit(1)


@click.command(cls=Command)
@click.argument("shard")
@click.option("--url", metavar="URL", help="Its address; not needed for a shard of the cluster.")
@cluster_option
@pass_invocation
def bootstrap(invocation: Invocation, where: str, shard: str, url: str | None) -> None:
    """Bring a new shard's tables to where those of all others are, and compare them.

    \b
      datapatterns shards bootstrap s4 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = cluster.migrations.bootstrap(shard, url)
    invocation.output.values(
        {
            "shard": found.shard,
            "revision": ", ".join(found.heads) or None,
            "library": found.library,
            "fingerprint": found.fingerprint,
        }
    )


def _pace(given: dict[str, Any]) -> "MigrationPace":
    from datapatterns.sharding import MigrationPace  # noqa: PLC0415 -- help must not wait for it

    return MigrationPace(**given)


def _progress(output: Output) -> Callable[[str, str, str | None], None]:
    def tell(shard: str, state: str, error: str | None) -> None:
        line = f"{shard}: {state}" + (f": {error}" if error else "")
        output.line(line, {"shard": shard, "state": state, "error": error})

    return tell


def _end(output: Output, runs: "Sequence[ShardRun]") -> None:
    if not output.as_json and all(run.attempts == 0 for run in runs):
        output.note("nothing was left to do")
    if any(run.state != "done" for run in runs):
        click.get_current_context().exit(1)


def _show_plans(output: Output, plans: "Sequence[ShardPlan]") -> None:
    if output.as_json:
        output.table(
            [
                {"shard": plan.shard, "of": of, "revision": step.revision, "title": step.title}
                for plan in plans
                for of, steps in (("library", plan.library), ("application", plan.application))
                for step in steps
            ]
        )
        return
    for plan in plans:
        steps = [step.revision for step in (*plan.library, *plan.application)]
        output.text(f"{plan.shard}: {', '.join(steps) or 'nothing'}")


def _show_sql(output: Output, shards: Sequence[str], sql: str) -> None:
    if output.as_json:
        output.table([{"shards": list(shards), "sql": sql}])
        return
    output.text(f"-- on {', '.join(shards)}")
    output.text(sql)
