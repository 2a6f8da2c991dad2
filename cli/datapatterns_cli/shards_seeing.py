"""`datapatterns shards stats|hot-keys|plan`: what shards hold, and how to spread it better."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.shards_cluster import cluster_option, group_of, load_cluster, shown_key
from datapatterns_cli.shared_options import Command

if TYPE_CHECKING:
    from datapatterns.sharding import HotKey, ShardStats

_MEASURES = ("rows", "bytes", "load")

within_option = click.option(
    "--minutes",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="How far back to look at what shards were asked.",
)


@click.command(cls=Command)
@click.option(
    "--per",
    type=click.Choice(["table", "shard", "bucket"]),
    help="Print these, one on each line.  [default: table, and a drawing of all]",
)
@within_option
@cluster_option
@pass_invocation
def stats(invocation: Invocation, where: str, per: str | None, minutes: int) -> None:
    """Count what each shard holds and is asked; ends with 1 if rows lie where nobody looks.

    Counts every row, so it reads every sharded table whole. What shards are asked is known of
    clusters that are opened with watch_load=True.

    \b
      datapatterns shards stats --cluster shop.data:cluster
      datapatterns shards stats --per bucket --json --cluster shop.data:cluster
    """  # noqa: D301
    from datapatterns.sharding import draw_stats  # noqa: PLC0415 -- help must not wait for it

    with load_cluster(where) as cluster:
        found = cluster.stats(within=timedelta(minutes=minutes))
    rows = {"shard": _per_shard, "bucket": _per_bucket}.get(per or "table", _per_table)(found)
    invocation.output.table(rows, empty="no class is mapped to a sharded table")
    if per is None and rows and not invocation.output.as_json:
        for line in draw_stats(found).splitlines():
            invocation.output.line(line, {})
    if misplaced := sum(table.misplaced for shard in found for table in shard.tables):
        invocation.output.note(
            f"{misplaced} rows lie in buckets that their shard does not own, so that no routed read"
            " finds them: somebody wrote past the library"
        )
        click.get_current_context().exit(1)


@click.command(cls=Command, name="hot-keys")
@click.argument("group")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="At most so many keys.",
)
@click.option(
    "--worth-a-pin",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Only those with this share of all hits that share their bucket with others.",
)
@within_option
@cluster_option
@pass_invocation
def hot_keys(
    invocation: Invocation,
    where: str,
    group: str,
    limit: int,
    worth_a_pin: float | None,
    minutes: int,
) -> None:
    """Show the keys of a group that are asked for most, in clusters with watch_load=True.

    \b
      datapatterns shards hot-keys household --cluster shop.data:cluster
      datapatterns shards hot-keys household --worth-a-pin 0.05 --cluster shop.data:cluster
    """  # noqa: D301
    within = timedelta(minutes=minutes)
    with load_cluster(where) as cluster:
        found = group_of(cluster, group)
        if worth_a_pin is None:
            keys = cluster.hot_keys(found, limit=limit, within=within)
        else:
            keys = cluster.advise_pins(found, min_share=worth_a_pin, within=within)[:limit]
    invocation.output.table(_hot(keys), empty="no key stands out, or nothing was counted")


@click.command(cls=Command)
@click.argument("group")
@click.option(
    "--by",
    "measures",
    multiple=True,
    metavar="MEASURE[=PART]",
    help="What buckets are weighed by: rows (reads them all), bytes (a sample), load (time), or"
    " several with their parts of the mix, such as --by bytes=0.7 --by load=0.3.  [default: rows]",
)
@click.option("--drain", "draining", multiple=True, metavar="SHARD", help="Empty this shard.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=(str, click.FloatRange(min=0, min_open=True)),
    metavar="SHARD NUMBER",
    help="How large a shard is compared with others.  [default: what is stored, else 1]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="How far from the mean a shard may be, as a share of the mean.",
)
@click.option("--max-moves", type=click.IntRange(min=0), help="At most so many, besides drained.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the plan to a file, as JSON; it must not exist.",
)
@within_option
@cluster_option
@pass_invocation
def plan(  # noqa: PLR0913, PLR0917 -- one for each option
    invocation: Invocation,
    where: str,
    group: str,
    measures: tuple[str, ...],
    draining: tuple[str, ...],
    weights: tuple[tuple[str, float], ...],
    threshold: float,
    max_moves: int | None,
    save: Path | None,
    minutes: int,
) -> None:
    """Tell which buckets should move so that all shards are used alike; moves nothing.

    \b
      datapatterns shards plan household --cluster shop.data:cluster
      datapatterns shards plan household --by load --save plan.json --cluster shop.data:cluster
      datapatterns shards plan household --drain s0 --weight s2 2 --cluster shop.data:cluster
    """  # noqa: D301
    with load_cluster(where) as cluster:
        found = cluster.plan(
            group_of(cluster, group),
            by=_mix(measures),
            draining=draining,
            weights=dict(weights),
            threshold=threshold,
            max_moves=max_moves,
            within=timedelta(minutes=minutes),
        )
    if save is not None:
        with save.open("x", encoding="utf-8") as file:
            file.write(found.to_json())
    rows = [
        {"bucket": move.bucket, "from": move.source, "to": move.target, "cost": int(move.cost)}
        for move in found
    ]
    invocation.output.table(rows, empty="nothing should move")
    if not invocation.output.as_json:
        for line in str(found).splitlines():
            invocation.output.line(line, {})


def _mix(measures: Sequence[str]) -> Any:  # noqa: ANN401 -- checked by the plan
    if len(measures) <= 1 and "=" not in "".join(measures):
        measure = measures[0] if measures else "rows"
        if measure not in _MEASURES:
            raise click.BadParameter(f"{measure!r} is none of {', '.join(_MEASURES)}")
        return measure
    mix = {}
    for each in measures:
        name, _, part = each.partition("=")
        try:
            mix[name] = float(part or 1)
        except ValueError as error:
            raise click.BadParameter(f"{part!r} is no number; say it as bytes=0.7") from error
    return mix


def _per_table(found: "Sequence[ShardStats]") -> list[dict[str, Any]]:
    counted = [(table, shard.shard) for shard in found for table in shard.tables]
    return [
        {
            "table": table.table,
            "shard": shard,
            "buckets": table.buckets,
            "rows": table.rows,
            "bytes": table.bytes,
            "misplaced": table.misplaced,
        }
        for table, shard in sorted(counted, key=lambda each: (each[0].table, each[1]))
    ]


def _per_shard(found: "Sequence[ShardStats]") -> list[dict[str, Any]]:
    return [
        {
            "shard": shard.shard,
            "buckets": len(shard.buckets),
            "rows": shard.rows,
            "bytes": shard.bytes,
            "reads": shard.reads,
            "writes": shard.writes,
            "busy_seconds": round(shard.busy_seconds, 3),
        }
        for shard in found
    ]


def _per_bucket(found: "Sequence[ShardStats]") -> list[dict[str, Any]]:
    return [
        {
            "group": bucket.group,
            "bucket": bucket.bucket,
            "shard": shard.shard,
            "rows": bucket.rows,
            "bytes": bucket.bytes,
            "reads": bucket.reads,
            "writes": bucket.writes,
            "busy_seconds": round(bucket.busy_seconds, 3),
        }
        for shard in found
        for bucket in shard.buckets
    ]


def _hot(keys: "Sequence[HotKey]") -> list[dict[str, Any]]:
    return [
        {
            "key": shown_key(key.key),
            "shard": key.shard,
            "bucket": key.bucket,
            "hits_min": key.hits_min,
            "hits_max": key.hits_max,
            "share": round(key.share, 4),
            "bucket_share": round(key.bucket_share, 4),
            "busy_seconds": round(key.busy_seconds, 3),
        }
        for key in keys
    ]
