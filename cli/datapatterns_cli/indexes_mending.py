"""`datapatterns indexes`: what is done with those that have failed, and with what is left over."""

from collections.abc import Mapping

import click

from datapatterns_cli.indexes_over_shards import conflicts_over_shards, sweep_over_shards
from datapatterns_cli.indexes_places import (
    WHOLE,
    asked,
    engines_of,
    index_cluster,
    index_database,
    index_names,
    layer_of,
    standing_of,
)
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shared_options import Command, dry_run_option


@click.command(cls=Command)
@click.argument("name")
@index_database
@index_cluster
@pass_invocation
def conflicts(
    invocation: Invocation, *, name: str, database: str | None, cluster: str | None
) -> None:
    """Show the rows for which a unique index has failed: others have their keys.

    \b
      datapatterns indexes conflicts customer_by_email --app shop.data:layer
    """  # noqa: D301
    if cluster is not None:
        conflicts_over_shards(invocation, cluster, name, database)
        return
    layer = layer_of(invocation)
    rows = [
        {
            "database": where,
            "key": _written(conflict.key),
            "primary_key": _written(conflict.primary_key),
            "holder": _written(conflict.holder),
        }
        for where, _, one in standing_of(layer, [name], database)
        if one.state == "failed"
        for conflict in asked(
            engines_of(layer)[where], lambda conn: layer.indexes.conflicts(conn, name)
        )
    ]
    invocation.output.table(rows, empty="no two rows are known to have one key")


@click.command(cls=Command)
@index_names
@index_database
@dry_run_option
@pass_invocation
def retry(
    invocation: Invocation, *, names: tuple[str, ...], database: str | None, dry_run: bool
) -> None:
    """Let indexes that have failed be built again, by indexes backfill.

    \b
      datapatterns indexes retry customer_by_email --app shop.data:layer
      datapatterns indexes backfill customer_by_email --app shop.data:layer
    """  # noqa: D301
    layer = layer_of(invocation)
    rows = [
        {
            "name": one.name,
            "database": where,
            "retried": not dry_run
            and bool(layer.indexes.retry(engines_of(layer)[where], [one.name])),
        }
        for where, _, one in standing_of(layer, names, database)
        if one.state == "failed"
    ]
    invocation.output.table(rows, empty="none has failed")


@click.command(cls=Command)
@index_names
@index_database
@index_cluster
@click.option(
    "--older-than-seconds",
    type=click.FloatRange(0),
    help="With --cluster: only what was claimed so long ago.  [default: before the oldest"
    " transaction that runs]",
)
@dry_run_option
@pass_invocation
def sweep(
    invocation: Invocation,
    *,
    names: tuple[str, ...],
    database: str | None,
    cluster: str | None,
    older_than_seconds: float | None,
    dry_run: bool,
) -> None:
    """Remove index rows that lead to no row; with --dry-run, count them.

    They cost look-ups time, never a wrong answer.

    \b
      datapatterns indexes sweep --dry-run --app shop.data:layer
    """  # noqa: D301
    if cluster is not None:
        sweep_over_shards(
            invocation,
            cluster,
            names,
            database,
            older_than_seconds=older_than_seconds,
            dry_run=dry_run,
        )
        return
    if older_than_seconds is not None:
        raise click.UsageError("--older-than-seconds is for claims over shards: name --cluster")
    layer = layer_of(invocation)
    rows = []
    for where, _, one in standing_of(layer, names, database):
        if one.state in WHOLE:
            engine = engines_of(layer)[where]
            found = layer.indexes.sweep(engine, [one.name], dry_run=dry_run)[one.name]
            rows.append(
                {
                    "name": one.name,
                    "database": where,
                    "orphaned": found.orphaned,
                    "removed": found.removed,
                }
            )
        else:
            invocation.output.note(f"{one.name} in {where} is left out: {one.state}")
    invocation.output.table(rows, empty="no index is there to be swept")


def _written(values: "Mapping[str, object]") -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
