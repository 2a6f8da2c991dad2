"""`datapatterns shards`: where keys lie, how rows are spread, and what the dead have left."""

from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.named_objects import bad_option, load_object
from datapatterns_cli.shared_options import Command, Group

if TYPE_CHECKING:
    from datapatterns.sharding import EntityGroup, ShardCluster

_BAR_CELLS = 24

cluster_option = click.option(
    "--cluster",
    "where",
    metavar="MODULE:NAME",
    envvar="DATAPATTERNS_CLUSTER",
    show_envvar=True,
    required=True,
    help="Where the application declares its ShardCluster, or a function that returns it, such as"
    " shop.data:cluster.",
)


@click.group(cls=Group)
def shards() -> None:
    """Look at shards, find the shard of a key, end what the dead have begun.

    \b
      datapatterns shards list --cluster shop.data:cluster
      datapatterns shards route household 42 --cluster shop.data:cluster
      datapatterns shards stats --cluster shop.data:cluster
      datapatterns shards plan household --cluster shop.data:cluster
      datapatterns shards recover --cluster shop.data:cluster
    """  # noqa: D301


@shards.command(cls=Command, name="list")
@cluster_option
@pass_invocation
def list_shards(invocation: Invocation, where: str) -> None:
    """Show the shards, and how many buckets of each group they own.

    \b
      datapatterns shards list --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        maps = {group: cluster.router.map_of(group) for group in cluster.groups}
        rows = [
            {
                "group": group.name,
                "strategy": group.strategy.kind,
                "shard": shard,
                "buckets": len(shard_map.buckets_on(shard)),
                "epoch": shard_map.epoch,
            }
            for group, shard_map in maps.items()
            for shard in sorted(cluster.engines)
        ]
    invocation.output.table(rows)


@shards.command(cls=Command)
@click.argument("group")
@click.argument("key")
@cluster_option
@pass_invocation
def route(invocation: Invocation, where: str, group: str, key: str) -> None:
    """Tell which bucket and which shard hold the rows of one key.

    GROUP is the name of an entity group; KEY is a number, a text or a UUID, as the group has them.

    \b
      datapatterns shards route household 42 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = _group_of(cluster, group)
        shard_map = cluster.router.map_of(found)
        wanted = found.parsed_key(key)
        invocation.output.values(
            {
                "group": found.name,
                "key": wanted if isinstance(wanted, int) else str(wanted),
                "bucket": shard_map.strategy.bucket(wanted),
                "shard": shard_map.shard_of(wanted),
            }
        )


@shards.command(cls=Command)
@cluster_option
@pass_invocation
def stats(invocation: Invocation, where: str) -> None:
    """Count the rows of each table on each shard; ends with 1 if some lie where nobody looks.

    Reads every sharded table whole.

    \b
      datapatterns shards stats --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        counted = [(shard.shard, table) for shard in cluster.stats() for table in shard.tables]
    largest: dict[str, int] = {}
    for _, table in counted:
        largest[table.table] = max(largest.get(table.table, 0), table.rows)
    rows: list[dict[str, Any]] = [
        {
            "table": table.table,
            "shard": shard,
            "buckets": table.buckets,
            "rows": table.rows,
            "misplaced": table.misplaced,
        }
        for shard, table in sorted(counted, key=lambda each: (each[1].table, each[0]))
    ]
    if not invocation.output.as_json:
        for row in rows:
            row["share"] = _bar(row["rows"], largest[row["table"]])
    invocation.output.table(rows, empty="no class is mapped to a sharded table")
    if misplaced := sum(row["misplaced"] for row in rows):
        invocation.output.note(
            f"{misplaced} rows lie in buckets that their shard does not own, so that no routed read"
            " finds them: somebody wrote past the library"
        )
        click.get_current_context().exit(1)


@shards.command(cls=Command)
@click.argument("group")
@click.option("--drain", "draining", multiple=True, metavar="SHARD", help="Empty this shard.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=(str, click.FloatRange(min=0, min_open=True)),
    metavar="SHARD NUMBER",
    help="How large a shard is compared with others.  [default: 1 each]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="How far from the mean a shard may be, as a share of the mean.",
)
@click.option("--max-moves", type=click.IntRange(min=0), help="At most so many, besides drained.")
@cluster_option
@pass_invocation
def plan(  # noqa: PLR0913, PLR0917 -- one for each option
    invocation: Invocation,
    where: str,
    group: str,
    draining: tuple[str, ...],
    weights: tuple[tuple[str, float], ...],
    threshold: float,
    max_moves: int | None,
) -> None:
    """Tell which buckets should move so that all shards hold alike; moves nothing.

    A bucket costs as many rows as it has. Reads every sharded table of the group whole.

    \b
      datapatterns shards plan household --cluster shop.data:cluster
      datapatterns shards plan household --drain s0 --weight s2 2 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = cluster.plan(
            _group_of(cluster, group),
            draining=draining,
            weights=dict(weights),
            threshold=threshold,
            max_moves=max_moves,
        )
    rows = [
        {"bucket": move.bucket, "from": move.source, "to": move.target, "rows": int(move.cost)}
        for move in found
    ]
    invocation.output.table(rows, empty="nothing should move")
    if not invocation.output.as_json:
        for line in str(found).splitlines():
            invocation.output.line(line, {})


@shards.command(cls=Command)
@click.option(
    "--grace-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="How long a transaction that is still under way is left alone.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@cluster_option
@pass_invocation
def recover(invocation: Invocation, where: str, grace_seconds: float, *, dry_run: bool) -> None:
    """End the transactions over several shards whose process died.

    Safe at any time, and by several at once. Ends with 1 if something is left that only you can
    end, or a shard did not answer.

    \b
      datapatterns shards recover --cluster shop.data:cluster
      datapatterns shards recover --dry-run --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        done = cluster.recover(grace_seconds=grace_seconds, dry_run=dry_run)
    invocation.output.values(
        {
            "committed": len(done.committed),
            "rolled_back": len(done.rolled_back),
            "waiting": len(done.waiting),
            "oldest_waiting_seconds": round(max(done.waiting.values(), default=0.0), 1),
            "decisions_forgotten": done.forgotten,
            "foreign": done.foreign if invocation.output.as_json else len(done.foreign),
            "denied": done.denied if invocation.output.as_json else len(done.denied),
            "unreachable": done.unreachable
            if invocation.output.as_json
            else ", ".join(done.unreachable) or None,
        }
    )
    for name in done.foreign:
        invocation.output.note(
            f"{name}: its primary is no shard of this cluster; add that shard, or end it by hand"
        )
    for name in done.denied:
        invocation.output.note(
            f"{name}: another role has prepared it; run this as that role, or as a superuser"
        )
    if done.foreign or done.denied or done.unreachable:
        click.get_current_context().exit(1)


def load_cluster(where: str) -> "ShardCluster":
    """Import the cluster of an application.

    Raises:
        click.BadParameter: There is no such thing, or it is no ShardCluster.
    """
    from datapatterns.sharding import ShardCluster  # noqa: PLC0415 -- help must not wait for it

    found = load_object(where, option="--cluster")
    if not isinstance(found, ShardCluster) and callable(found):
        found = found()
    if not isinstance(found, ShardCluster):
        raise bad_option(f"{where!r} is no ShardCluster but {type(found).__name__}", "--cluster")
    return found


def _group_of(cluster: "ShardCluster", name: str) -> "EntityGroup":
    found = {group.name: group for group in cluster.groups}
    if name not in found:
        raise bad_option(f"there is no group {name!r}; there are {', '.join(found)}", "GROUP")
    return found[name]


def _bar(value: int, largest: int) -> str:
    return "█" * round(_BAR_CELLS * value / largest) if largest else ""
