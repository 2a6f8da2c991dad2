"""`datapatterns shards check-citus` and `citus-ddl`: growing out."""

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_option, load_cluster
from datapatterns_cli.shared_options import Command


@click.command(cls=Command)
@click.option("--shard", metavar="SHARD", help="Look at its triggers and rules, too.")
@click.option("--coordinator", metavar="URL", help="Look at what Citus has made there, too.")
@cluster_option
@pass_invocation
def check_citus(
    invocation: Invocation, where: str, shard: str | None, coordinator: str | None
) -> None:
    """Name what Citus would refuse of the sharded tables, or do otherwise; ends with 1 if it would.

    \b
      datapatterns shards check-citus --shard s0 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = cluster.check_citus(shard=shard, coordinator=coordinator)
    invocation.output.table(
        [
            {
                "table": each.table,
                "severity": each.severity,
                "problem": each.problem,
                "advice": each.advice,
            }
            for each in found
        ],
        empty="nothing stands in the way",
    )
    if any(each.severity == "error" for each in found):
        click.get_current_context().exit(1)


@click.command(cls=Command)
@click.option(
    "--shard-count",
    type=click.IntRange(1, 64_000),
    default=64,
    show_default=True,
    help="How many shards Citus makes of a table.",
)
@click.option(
    "--index-table",
    "index_tables",
    multiple=True,
    type=(str, str),
    metavar="TABLE COLUMN",
    help="Distribute this table, too, by the column.",
)
@click.option("--without-pins", is_flag=True, help="Do not ask the map which keys are pinned.")
@cluster_option
@pass_invocation
def citus_ddl(
    invocation: Invocation,
    where: str,
    shard_count: int,
    index_tables: tuple[tuple[str, str], ...],
    *,
    without_pins: bool,
) -> None:
    """Print the SQL that distributes the sharded tables by Citus; runs nothing.

    \b
      datapatterns shards citus-ddl --cluster shop.data:cluster | psql "$COORDINATOR"
    """  # noqa: D301
    with load_cluster(where) as cluster:
        ddl = cluster.citus_ddl(
            shard_count=shard_count, index_tables=dict(index_tables), with_pins=not without_pins
        )
    if invocation.output.as_json:
        invocation.output.values({"sql": ddl})
    else:
        invocation.output.text(ddl)
