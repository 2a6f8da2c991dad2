"""Draw what shards hold and are asked, as text."""

from collections.abc import Sequence

from datapatterns.sharding.seeing.bars import bar, histogram
from datapatterns.sharding.seeing.counting import BucketStats, ShardStats

_CELLS = 12
_KILO = 1_000


def draw_stats(stats: Sequence[ShardStats]) -> str:
    """Return a drawing of `ShardCluster.stats`: bars for each shard, a histogram over the buckets.

    The histogram shows the buckets in their order; where one stands for several, the fullest.
    """
    groups = sorted({bucket.group for shard in stats for bucket in shard.buckets})
    return "\n".join(line for group in groups for line in _group(group, stats))


def _group(group: str, stats: Sequence[ShardStats]) -> list[str]:
    held = {
        shard.shard: [bucket for bucket in shard.buckets if bucket.group == group]
        for shard in stats
    }
    sums = {shard: _sums(buckets) for shard, buckets in held.items()}
    largest = [max(column) for column in zip(*sums.values(), strict=True)]
    cells = max(map(len, [*held, "shard"]))
    counted = _CELLS + 10
    lines = [
        group,
        f"  {'shard':{cells}}  {'buckets':>7}  {'rows':{counted}}  {'bytes':{counted}}  busy",
    ]
    for shard, (rows, taken, busy) in sums.items():
        drawn = (
            f"{bar(value, most, cells=_CELLS):{_CELLS}} {told:<9}"
            for value, most, told in zip(
                (rows, taken, busy),
                largest,
                (f"{rows:,.0f}", _bytes(taken), f"{busy:,.2f} s"),
                strict=True,
            )
        )
        line = f"  {shard:{cells}}  {len(held[shard]):>7}  {'  '.join(drawn)}"
        lines.append(line.rstrip())
    ordered = sorted((b for buckets in held.values() for b in buckets), key=lambda b: b.bucket)
    last = ordered[-1].bucket
    for name, values in (
        ("rows", [float(bucket.rows) for bucket in ordered]),
        ("busy", [bucket.busy_seconds for bucket in ordered]),
    ):
        if any(values):
            lines.append(f"  {name} of buckets {ordered[0].bucket} to {last}:")
            lines.append(f"    {histogram(values)}".rstrip())
    return lines


def _sums(buckets: Sequence[BucketStats]) -> tuple[float, float, float]:
    return (
        sum(bucket.rows for bucket in buckets),
        sum(bucket.bytes for bucket in buckets),
        sum(bucket.busy_seconds for bucket in buckets),
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < _KILO:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _KILO
    return f"{count:,.1f} TB"
