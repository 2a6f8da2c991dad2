"""Find the cluster that an application declares."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from datapatterns_cli.named_objects import bad_option, load_object

if TYPE_CHECKING:
    from datapatterns.sharding import EntityGroup, Key, ShardCluster

Command = TypeVar("Command", bound=Callable[..., Any])


def _names_cluster(*, required: bool) -> Callable[[Command], Command]:
    return click.option(
        "--cluster",
        "where",
        metavar="MODULE:NAME",
        envvar="DATAPATTERNS_CLUSTER",
        show_envvar=True,
        required=required,
        help="Where the application declares its ShardCluster, or a function that returns it, such"
        " as shop.data:cluster.",
    )


cluster_option = _names_cluster(required=True)
cluster_too_option = _names_cluster(required=False)
"""For commands that look at more than shards."""


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


def group_of(cluster: "ShardCluster", name: str) -> "EntityGroup":
    """Return the group of this name.

    Raises:
        click.BadParameter: The cluster has none.
    """
    found = {group.name: group for group in cluster.groups}
    if name not in found:
        raise bad_option(f"there is no group {name!r}; there are {', '.join(found)}", "GROUP")
    return found[name]


def shown_key(key: "Key") -> object:
    """Return a key for output: a number or a text, or a list of both parts."""
    if isinstance(key, tuple):
        return [shown_key(part) for part in key]
    return key if isinstance(key, int) else str(key)
