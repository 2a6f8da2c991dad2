"""`datapatterns shards`: where keys lie, how rows are spread, and what the dead have left."""

import click

from datapatterns_cli import shards_citus, shards_migrating
from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_broadcast import broadcast
from datapatterns_cli.shards_cluster import cluster_option, group_of, load_cluster, shown_key
from datapatterns_cli.shards_linting import lint
from datapatterns_cli.shards_mapping import assign, merge, pin, split, unpin
from datapatterns_cli.shards_moving import COMMANDS as MOVING
from datapatterns_cli.shards_referring import references
from datapatterns_cli.shards_seeing import hot_keys, plan, stats
from datapatterns_cli.shared_options import Command, Group, dry_run_option


@click.group(cls=Group)
def shards() -> None:
    """Look at shards, find the shard of a key, end what the dead have begun.

    \b
      datapatterns shards list --cluster shop.data:cluster
      datapatterns shards route household 42 --cluster shop.data:cluster
      datapatterns shards route tenant eu 7 --cluster shop.data:cluster
      datapatterns shards stats --cluster shop.data:cluster
      datapatterns shards hot-keys household --cluster shop.data:cluster
      datapatterns shards plan household --cluster shop.data:cluster
      datapatterns shards pin household 42 --cluster shop.data:cluster
      datapatterns shards recover --cluster shop.data:cluster
      datapatterns shards migrate --cluster shop.data:cluster
      datapatterns shards status --cluster shop.data:cluster
    """  # noqa: D301


for _moving in MOVING:
    shards.add_command(_moving)


@shards.command(cls=Command, name="list")
@cluster_option
@pass_invocation
def list_shards(invocation: Invocation, where: str) -> None:
    """Show the shards, how many buckets of each group they own, and how they are.

    \b
      datapatterns shards list --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        health = {each.shard: each for each in cluster.health()}
        maps = {group: cluster.router.map_of(group) for group in cluster.groups}
        rows = [
            {
                "group": group.name,
                "strategy": group.strategy.kind,
                "shard": shard,
                "buckets": len(shard_map.buckets_on(shard)),
                "epoch": shard_map.epoch,
                "answers": health[shard].answers,
                "left_alone": health[shard].left_alone,
                "oldest_prepared_seconds": round(health[shard].oldest_prepared_seconds, 1),
            }
            for group, shard_map in maps.items()
            for shard in sorted(cluster.engines)
        ]
    invocation.output.table(rows)
    for each in health.values():
        if each.problem is not None:
            invocation.output.note(each.problem)


@shards.command(cls=Command)
@click.argument("group")
@click.argument("key", nargs=-1, required=True)
@cluster_option
@pass_invocation
def route(invocation: Invocation, where: str, group: str, key: tuple[str, ...]) -> None:
    """Tell which bucket and which shard hold the rows of one key.

    GROUP is the name of an entity group; KEY is a number, a text or a UUID, as the group has them:
    one for each column of the key.

    \b
      datapatterns shards route household 42 --cluster shop.data:cluster
      datapatterns shards route tenant eu 7 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = group_of(cluster, group)
        shard_map = cluster.router.map_of(found)
        wanted = found.parsed_key(*key)
        invocation.output.values(
            {
                "group": found.name,
                "key": shown_key(wanted),
                "bucket": shard_map.strategy.bucket(wanted),
                "shard": shard_map.shard_of(wanted),
            }
        )


@shards.command(cls=Command)
@click.option(
    "--grace-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="How long a transaction that is still under way is left alone.",
)
@dry_run_option
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


for _command in (
    stats,
    hot_keys,
    plan,
    shards_migrating.migrate,
    shards_migrating.downgrade,
    shards_migrating.status,
    shards_migrating.bootstrap,
    split,
    merge,
    pin,
    unpin,
    assign,
    shards_citus.check_citus,
    shards_citus.citus_ddl,
):
    shards.add_command(_command)
shards.add_command(broadcast)
shards.add_command(references)
shards.add_command(lint)
