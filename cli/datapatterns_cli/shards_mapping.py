"""`datapatterns shards split|merge|pin|unpin|assign`: which keys share a bucket."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_option, group_of, load_cluster, shown_key
from datapatterns_cli.shared_options import Command, dry_run_option

if TYPE_CHECKING:
    from datapatterns.sharding import EntityGroup, Key, MapChange, ShardCluster


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command what all of them take, besides the group and the key."""
    return dry_run_option(cluster_option(pass_invocation(function)))


@click.command(cls=Command)
@click.argument("group")
@click.argument("at")
@_options
def split(invocation: Invocation, where: str, group: str, at: str, *, dry_run: bool) -> None:
    """Cut a range in two, while it is in use; no row moves.

    The part of GROUP's range from the key AT on becomes a bucket of its own, which can be moved.

    \b
      datapatterns shards split day 20260101 --dry-run --cluster shop.data:cluster
      datapatterns shards split day 20260101 --cluster shop.data:cluster
    """  # noqa: D301
    _change(
        invocation,
        where,
        (group, at),
        lambda cluster, found, key: cluster.split_range(found, at=key, dry_run=dry_run),
    )


@click.command(cls=Command)
@click.argument("group")
@click.argument("at")
@_options
def merge(invocation: Invocation, where: str, group: str, at: str, *, dry_run: bool) -> None:
    """Make the range that begins at a key one with that below it, while both are in use.

    Both must lie on one shard: no row moves.

    \b
      datapatterns shards merge day 20260101 --cluster shop.data:cluster
    """  # noqa: D301
    _change(
        invocation,
        where,
        (group, at),
        lambda cluster, found, key: cluster.merge_ranges(found, at=key, dry_run=dry_run),
    )


@click.command(cls=Command)
@click.argument("group")
@click.argument("key")
@_options
def pin(invocation: Invocation, where: str, group: str, key: str, *, dry_run: bool) -> None:
    """Give one key a bucket for itself, while it is in use; no row moves.

    Then move that bucket to isolate a tenant that is too busy for its neighbours.

    \b
      datapatterns shards pin household 42 --cluster shop.data:cluster
    """  # noqa: D301
    _change(
        invocation,
        where,
        (group, key),
        lambda cluster, found, key: cluster.pin(found, key, dry_run=dry_run),
    )


@click.command(cls=Command)
@click.argument("group")
@click.argument("key")
@_options
def unpin(invocation: Invocation, where: str, group: str, key: str, *, dry_run: bool) -> None:
    """Put a pinned key back to where its group's strategy has it; no row moves.

    Its bucket must lie on the same shard as the one that it goes to.

    \b
      datapatterns shards unpin household 42 --cluster shop.data:cluster
    """  # noqa: D301
    _change(
        invocation,
        where,
        (group, key),
        lambda cluster, found, key: cluster.unpin(found, key, dry_run=dry_run),
    )


@click.command(cls=Command)
@click.argument("group")
@click.argument("key")
@click.argument("bucket", type=click.IntRange(min=0))
@_options
def assign(
    invocation: Invocation, where: str, group: str, key: str, bucket: int, *, dry_run: bool
) -> None:
    """Put a key of a directory or list into a bucket by name; no row moves.

    The bucket must lie on the shard that has the key now.

    \b
      datapatterns shards assign market it 3 --cluster shop.data:cluster
    """  # noqa: D301
    _change(
        invocation,
        where,
        (group, key),
        lambda cluster, found, key: cluster.assign(found, key, bucket, dry_run=dry_run),
    )


def _change(
    invocation: Invocation,
    where: str,
    named: tuple[str, str],
    change: "Callable[[ShardCluster, EntityGroup, Key], MapChange]",
) -> None:
    group, key = named
    with load_cluster(where) as cluster:
        found = group_of(cluster, group)
        done = change(cluster, found, found.parsed_key(key))
    invocation.output.values(
        {
            "group": done.group,
            "change": done.kind,
            "key": shown_key(done.key),
            "from_bucket": done.losing,
            "to_bucket": done.gaining,
            "shard": done.shard,
            "changed": done.changed,
            "epoch": done.epoch,
        }
    )
    if not done.changed:
        invocation.output.note("it was so already")
