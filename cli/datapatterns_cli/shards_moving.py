"""`datapatterns shards move`, and all else that changes where buckets lie."""

from collections.abc import Callable, Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_option, group_of, load_cluster
from datapatterns_cli.shared_options import Command, dry_run_option

if TYPE_CHECKING:
    from datapatterns.sharding import Move, MoveProgress, RebalancePlan

clean_option = click.option(
    "--clean-after-seconds",
    type=click.FloatRange(min=0),
    help="How long the source keeps the rows.  [default: twice the time an old map is used for]",
)
throttle_option = click.option(
    "--mb-per-second",
    type=click.FloatRange(min=0, min_open=True),
    help="Copy at most so much, for each move.  [default: as fast as it goes]",
)
parallel_option = click.option(
    "--max-parallel",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="At most so many moves at once; no shard takes part in two.",
)


@click.command(cls=Command)
@click.argument("group")
@click.argument("bucket", type=click.IntRange(min=0))
@click.option("--to", "target", required=True, metavar="SHARD", help="Who gets it.")
@clean_option
@throttle_option
@dry_run_option
@cluster_option
@pass_invocation
def move(  # noqa: PLR0913, PLR0917 -- one for each option
    invocation: Invocation,
    where: str,
    group: str,
    bucket: int,
    target: str,
    clean_after_seconds: float | None,
    mb_per_second: float | None,
    *,
    dry_run: bool,
) -> None:
    """Move one bucket to another shard while it is read and written.

    Should this process die, `datapatterns shards resume` goes on.

    \b
      datapatterns shards move household 17 --to s1 --cluster shop.data:cluster
      datapatterns shards move household 17 --to s1 --mb-per-second 5 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = group_of(cluster, group)
        if dry_run:
            owners = cluster.router.map_of(found).owners
            source = owners[bucket] if bucket < len(owners) else None
            invocation.output.values(
                {"group": group, "bucket": bucket, "from": source, "to": target}
            )
            for hint in cluster.move_hints(found):
                invocation.output.note(f"a bucket would be found faster on each shard by: {hint}")
            return
        moved = cluster.move(
            found,
            bucket,
            to=target,
            clean_after_seconds=clean_after_seconds,
            bytes_per_second=_bytes(mb_per_second),
            progress=_telling(invocation),
        )
        invocation.output.values(_row(moved))


@click.command(cls=Command)
@click.argument("shard")
@click.option(
    "--by",
    type=click.Choice(["rows", "bytes", "load"]),
    default="rows",
    show_default=True,
    help="What a bucket weighs.",
)
@parallel_option
@clean_option
@throttle_option
@dry_run_option
@cluster_option
@pass_invocation
def drain(  # noqa: PLR0913, PLR0917 -- one for each option
    invocation: Invocation,
    where: str,
    shard: str,
    by: Any,  # noqa: ANN401 -- one of the choices
    max_parallel: int,
    clean_after_seconds: float | None,
    mb_per_second: float | None,
    *,
    dry_run: bool,
) -> None:
    """Move all buckets off a shard; it gets no new ones.

    \b
      datapatterns shards drain s0 --dry-run --cluster shop.data:cluster
      datapatterns shards drain s0 --max-parallel 2 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        if dry_run:
            _print_plans(invocation, cluster.drain_plans(shard, by=by))
            return
        moves = cluster.drain(
            shard,
            by=by,
            max_parallel=max_parallel,
            clean_after_seconds=clean_after_seconds,
            bytes_per_second=_bytes(mb_per_second),
            progress=_telling(invocation),
        )
    _print_moves(invocation, moves, empty=f"shard {shard} had no buckets")


@click.command(cls=Command)
@click.argument("plan", type=click.File("rb"))
@parallel_option
@clean_option
@throttle_option
@dry_run_option
@cluster_option
@pass_invocation
def rebalance(  # noqa: PLR0913 -- one for each option
    invocation: Invocation,
    where: str,
    plan: Any,  # noqa: ANN401 -- an open file
    max_parallel: int,
    clean_after_seconds: float | None,
    mb_per_second: float | None,
    *,
    dry_run: bool,
) -> None:
    """Carry out a plan that `datapatterns shards plan` has saved; PLAN is its file, or - for stdin.

    A bucket that has moved since stays where it is, so repeating it does no harm.

    \b
      datapatterns shards rebalance plan.json --max-parallel 2 --cluster shop.data:cluster
    """  # noqa: D301
    from datapatterns.sharding import RebalancePlan  # noqa: PLC0415 -- help must not wait for it

    found = RebalancePlan.from_json(plan.read())
    if dry_run:
        _print_plans(invocation, [found])
        return
    with load_cluster(where) as cluster:
        moves = cluster.rebalance(
            found,
            max_parallel=max_parallel,
            clean_after_seconds=clean_after_seconds,
            bytes_per_second=_bytes(mb_per_second),
            progress=_telling(invocation),
        )
    _print_moves(invocation, moves, empty="nothing of the plan was left to move")


@click.command(cls=Command)
@click.option("--all", "ended", is_flag=True, help="Also those that have ended.")
@cluster_option
@pass_invocation
def moves(invocation: Invocation, where: str, *, ended: bool) -> None:
    """Show the moves that are not done.

    \b
      datapatterns shards moves --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        _print_moves(invocation, cluster.moves(live=not ended), empty="nothing moves")


@click.command(cls=Command)
@clean_option
@dry_run_option
@cluster_option
@pass_invocation
def resume(
    invocation: Invocation, where: str, clean_after_seconds: float | None, *, dry_run: bool
) -> None:
    """Go on with all moves whose worker has died.

    \b
      datapatterns shards resume --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        if dry_run:
            found = [move for move in cluster.moves() if not move.is_leased]
        else:
            found = cluster.resume_moves(
                clean_after_seconds=clean_after_seconds, progress=_telling(invocation)
            )
    _print_moves(invocation, found, empty="no move waits for a worker")


@click.command(cls=Command)
@click.argument("group")
@click.argument("bucket", type=click.IntRange(min=0))
@dry_run_option
@cluster_option
@pass_invocation
def abort(invocation: Invocation, where: str, group: str, bucket: int, *, dry_run: bool) -> None:
    """Undo the move of a bucket; one that is past its cut goes on to its end.

    \b
      datapatterns shards abort household 17 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        wanted = (group_of(cluster, group).name, bucket)
        found = [each for each in cluster.moves() if (each.group, each.bucket) == wanted]
        if found and not dry_run:
            ended = cluster.abort_move(group_of(cluster, group), bucket)
            found = [] if ended is None else [ended]
    _print_moves(invocation, found, empty="this bucket does not move")


@click.command(cls=Command)
@click.argument("group")
@click.option("--shard", metavar="SHARD", help="Only there.")
@dry_run_option
@cluster_option
@pass_invocation
def forget(
    invocation: Invocation, where: str, group: str, shard: str | None, *, dry_run: bool
) -> None:
    """Drop the triggers that refuse late writers where buckets have been.

    Only when no process can be left that writes past the library, from an old map.

    \b
      datapatterns shards forget household --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = cluster.forget(group_of(cluster, group), shard=shard, dry_run=dry_run)
    rows = [
        {"shard": name, "bucket": bucket} for name, buckets in found.items() for bucket in buckets
    ]
    invocation.output.table(rows, empty="no bucket has left anything behind")


@click.command(cls=Command)
@click.argument("shard")
@click.option(
    "--weight",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How large it is compared with others.",
)
@dry_run_option
@cluster_option
@pass_invocation
def add(invocation: Invocation, where: str, shard: str, weight: float, *, dry_run: bool) -> None:
    """Take a configured server into the cluster; it gets no buckets by that alone.

    \b
      datapatterns shards add s4 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        if not dry_run:
            cluster.add_shard(shard, weight=weight)
        copies = [table.name for table in cluster.broadcast_tables]
    invocation.output.values({"shard": shard, "weight": weight, "broadcast_tables": len(copies)})


@click.command(cls=Command)
@click.argument("shard")
@dry_run_option
@cluster_option
@pass_invocation
def remove(invocation: Invocation, where: str, shard: str, *, dry_run: bool) -> None:
    """Let a shard go that has been drained; then take it out of the configuration.

    \b
      datapatterns shards remove s0 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        buckets = sum(
            len(cluster.router.map_of(group).buckets_on(shard)) for group in cluster.groups
        )
        if not dry_run:
            cluster.remove_shard(shard)
    invocation.output.values({"shard": shard, "buckets": buckets})


COMMANDS = (move, drain, rebalance, moves, resume, abort, forget, add, remove)


def _telling(invocation: Invocation) -> "Callable[[MoveProgress], None]":
    """Tell on stderr whenever a move has come further; moves may run in several threads."""
    lock, told = Lock(), dict[Any, str]()

    def tell(progress: "MoveProgress") -> None:
        move = progress.move
        with lock:
            if told.get(move.move_id) == move.state:
                return
            told[move.move_id] = move.state
            invocation.output.note(
                f"bucket {move.bucket} of {move.group}, {move.source} to {move.target}:"
                f" {move.state.replace('_', ' ')}"
            )

    return tell


def _row(move: "Move") -> dict[str, Any]:
    return {
        "group": move.group,
        "bucket": move.bucket,
        "from": move.source,
        "to": move.target,
        "state": move.state,
        "rows": move.copied_rows,
        "bytes": move.copied_bytes,
        "pause_ms": None if move.pause_ms is None else round(move.pause_ms, 1),
        "worker": "yes" if move.is_leased else "no",
        "error": move.error,
    }


def _print_moves(invocation: Invocation, moves: "Iterable[Move]", *, empty: str) -> None:
    invocation.output.table([_row(move) for move in moves], empty=empty)


def _print_plans(invocation: Invocation, plans: "Iterable[RebalancePlan]") -> None:
    rows = [
        {
            "group": plan.group,
            "bucket": move.bucket,
            "from": move.source,
            "to": move.target,
            plan.by: round(move.cost),
        }
        for plan in plans
        for move in plan
    ]
    invocation.output.table(rows, empty="nothing should move")


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes * 1_000_000
