"""Shards and the moves between them, in the words of the overview."""

from datapatterns.overview.standing import Concern, Standing
from datapatterns.sharding import Move, ShardCluster, ShardHealth

_OLD_SECONDS = 60.0


def shard_standings(cluster: ShardCluster) -> list[Standing]:
    """Return how each shard is, as this process sees it."""
    return [_shard(health) for health in cluster.health()]


def move_standings(cluster: ShardCluster) -> list[Standing]:
    """Return each move of a bucket that is not done."""
    return [_move(move) for move in cluster.moves()]


def _shard(health: ShardHealth) -> Standing:
    concern, reason, advice = Concern.FINE, health.problem, None
    if not health.answers:
        concern, advice = Concern.WRONG, "datapatterns doctor"
    elif health.oldest_prepared_seconds > _OLD_SECONDS:
        concern, advice = Concern.WRONG, "datapatterns shards recover"
        reason = "a transaction has been prepared for long; it holds locks and holds back VACUUM"
    return Standing(
        pattern="shard",
        name=health.shard,
        database=health.shard,
        state="answers" if health.answers else "not answering",
        concern=concern,
        stale_seconds=health.oldest_prepared_seconds or None,
        pending=health.prepared,
        reason=reason,
        advice=advice,
    )


def _move(move: Move) -> Standing:
    # Behind the hand-over nothing but the rows that are left behind waits for anybody.
    stopped = not move.is_leased and move.state != "handed_over"
    return Standing(
        pattern="move",
        name=f"bucket {move.bucket} of {move.group}",
        database=f"{move.source} to {move.target}",
        state=move.state,
        concern=Concern.WRONG if stopped else Concern.WAITING,
        reason=move.error or ("nobody works at it" if stopped else None),
        advice="datapatterns shards resume" if stopped else None,
    )
