"""`datapatterns shards lint`: what would go wrong with sharded tables."""

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_option, load_cluster
from datapatterns_cli.shared_options import Command


@click.command(cls=Command)
@click.option("--declared-only", is_flag=True, help="Look at the code alone, and at no server.")
@cluster_option
@pass_invocation
def lint(invocation: Invocation, where: str, *, declared_only: bool) -> None:
    """Tell what would go wrong with sharded and broadcast tables; ends with 1 if anything would.

    \b
      datapatterns shards lint --cluster shop.data:cluster
      datapatterns shards lint --declared-only --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = cluster.lint(declared_only=declared_only)
    rows = [
        {
            "rule": finding.rule,
            "table": finding.table,
            "shard": finding.shard,
            "problem": finding.problem,
            "advice": finding.sql or finding.advice,
        }
        for finding in found
    ]
    invocation.output.table(rows, empty="nothing is wrong")
    if found:
        click.get_current_context().exit(1)
