"""`datapatterns shards broadcast`: the copies of tables that every shard holds."""

from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.named_objects import bad_option
from datapatterns_cli.shards_cluster import cluster_option, load_cluster
from datapatterns_cli.shared_options import Command, Group

if TYPE_CHECKING:
    from sqlalchemy import Table

    from datapatterns.sharding import CopyComparison, ShardCluster


@click.group(cls=Group)
def broadcast() -> None:
    """Compare the copies of broadcast tables, and make them equal.

    \b
      datapatterns shards broadcast verify --cluster shop.data:cluster
      datapatterns shards broadcast repair country --source s0 --cluster shop.data:cluster
    """  # noqa: D301


@broadcast.command(cls=Command)
@click.argument("tables", nargs=-1)
@click.option("--source", metavar="SHARD", help="Compare with this one.  [default: the first]")
@cluster_option
@pass_invocation
def verify(invocation: Invocation, where: str, tables: tuple[str, ...], source: str | None) -> None:
    """Tell which copies of broadcast TABLES differ, of all unless some are named.

    Ends with 1 if one does. Reads each table whole on every shard; its writers wait meanwhile.

    \b
      datapatterns shards broadcast verify --cluster shop.data:cluster
      datapatterns shards broadcast verify country --source s1 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = [
            cluster.verify_broadcast(table, source=source) for table in _tables(cluster, tables)
        ]
    _show(invocation, found)
    if not all(comparison.equal for comparison in found):
        invocation.output.note(
            "somebody wrote to one shard past the library; datapatterns shards broadcast repair"
            " makes all copies equal to the one that is right"
        )
        click.get_current_context().exit(1)


@broadcast.command(cls=Command)
@click.argument("table")
@click.option("--source", required=True, metavar="SHARD", help="Whose copy is right.")
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
@cluster_option
@pass_invocation
def repair(invocation: Invocation, where: str, table: str, source: str, *, dry_run: bool) -> None:
    """Make all copies of a broadcast TABLE equal to that of one shard, on all or on none.

    \b
      datapatterns shards broadcast repair country --source s0 --dry-run --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        (named,) = _tables(cluster, (table,))
        found = cluster.repair_broadcast(named, source=source, dry_run=dry_run)
    _show(invocation, [found])


def _tables(cluster: "ShardCluster", names: tuple[str, ...]) -> "list[Table]":
    known = {table.fullname: table for table in cluster.broadcast_tables}
    for name in names:
        if name not in known:
            raise bad_option(
                f"there is no broadcast table {name!r}; there are {', '.join(known) or 'none'}",
                "TABLE",
            )
    return [known[name] for name in names or known]


def _show(invocation: Invocation, found: "list[CopyComparison]") -> None:
    as_json = invocation.output.as_json
    rows: list[dict[str, Any]] = []
    for comparison in found:
        for shard, count in sorted(comparison.rows.items()):
            row: dict[str, Any] = {"table": comparison.table, "shard": shard, "rows": count}
            difference = comparison.differences.get(shard)
            for kind in ("missing", "surplus", "changed"):
                keys = [] if difference is None else list(getattr(difference, kind))
                row[kind] = keys if as_json else len(keys)
            rows.append(row)
    invocation.output.table(rows, empty="no table is declared as Broadcast()")
