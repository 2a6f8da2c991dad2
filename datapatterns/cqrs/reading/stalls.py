"""Why a read model does not move on: decided by what its versions and shards say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from datapatterns.event_sourcing.events import Position

_COMING: Final = ("building", "ready")
"""Which versions may take the place of the live one without anybody's decision to build them."""


@dataclass(frozen=True, slots=True)
class ShardState:
    """A shard of one version, as its row and its version's say.

    Attributes:
        held: Whether a runner has a valid lease on it.
    """

    version: int
    status: str
    mode: str
    position: Position
    held: bool
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Stall:
    """What keeps a read model from a position.

    Attributes:
        reason: As in `ReadModelBehindError`.
        detail: The same for people.
        final: Waiting cannot help; somebody has to do something.
    """

    reason: str
    detail: str
    final: bool


def find_stall(
    shards: Sequence[ShardState], token: Position, *, version: int, in_table: bool
) -> Stall | None:
    """Return why ``version`` does not get to ``token``; None if it seems to be on its way.

    >>> dead = ShardState(1, "retired", "async", Position(7), held=False, error=None)
    >>> find_stall([dead], Position(9), version=1, in_table=False)
    Stall(reason='version', detail='version 1 is retired', final=True)

    Args:
        shards: Those of all versions.
        token: How far it should be.
        version: Which one is waited for.
        in_table: Whether the versions take each other's place.
    """
    mine = [shard for shard in shards if shard.version == version]
    status = mine[0].status if mine else None
    live = {shard.version for shard in shards if shard.status == "live"}
    if in_table and status == "standby":
        # Its readers read what has taken its place.
        mine, status = [shard for shard in shards if shard.version in live], "live"
    elif in_table and live and version not in live:
        return _other_version(live.pop(), version, status)
    if not mine:
        return Stall("idle", "its projection was never run", final=False)
    if status == "live" and mine[0].mode == "inline":
        open_append = "appends keep it, and a transaction that has appended before is still open"
        return Stall("late", open_append, final=False)
    if status in ("retired", "failed"):
        return Stall("version", f"version {version} is {status}", final=True)
    return _held_back([shard for shard in mine if shard.position < token], status)


def _other_version(live: int, version: int, status: str | None) -> Stall:
    built = f"version {live} has built the table"
    if status in _COMING:
        # It may be promoted in a moment, and nobody knows how much is to be built.
        return Stall("building", f"{built}, version {version} is {status}", final=False)
    return Stall("version", built, final=True)


def _held_back(behind: Sequence[ShardState], status: str | None) -> Stall | None:
    for shard in behind:
        if shard.error is not None:
            return Stall("stopped", _stop(shard.error), final=True)
    if status in _COMING:
        return Stall("building", "it is being built", final=False)
    if behind and not any(shard.held for shard in behind):
        return Stall("idle", "nobody runs it", final=False)
    return None


def _stop(error: Mapping[str, Any]) -> str:
    return f"stopped before {error['event_type']} at {error['position']}: {error['error']}"
