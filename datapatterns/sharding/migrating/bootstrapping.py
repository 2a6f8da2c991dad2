"""Bring a new shard's tables to where those of the others are."""

from collections.abc import Mapping

from datapatterns.errors import ShardDriftError
from datapatterns.sharding.migrating.drift import drift
from datapatterns.sharding.migrating.environment import HEADS, AlembicEnvironment
from datapatterns.sharding.migrating.looking import ShardLook


def agreed(looks: Mapping[str, ShardLook]) -> ShardLook:
    """Return what all shards have.

    Raises:
        ShardDriftError: They differ, so nobody can say which tables a new one should have.
    """
    first, *others = (looks[shard] for shard in sorted(looks))
    for other in others:
        if (other.heads, other.library) != (first.heads, first.library):
            beside = f"it is at {_told(other)}, {first.shard} is at {_told(first)}"
            raise ShardDriftError(other.shard, (f"{beside}: migrate all shards first",))
        if differences := drift(first.catalog, other.catalog):
            raise ShardDriftError(other.shard, tuple(map(str, differences)))
    return first


def steps_to(
    look: ShardLook, environment: AlembicEnvironment | None
) -> tuple[str | None, list[str]]:
    """Return where to bring a new shard: the library, and then the application, in steps."""
    if environment is None:
        return look.library, []
    revisions = environment.revisions()
    # An environment that has our revisions, too, brings them along.
    library = None if revisions.has("dp0001") else look.library
    if revisions.resolved(HEADS) == frozenset(look.heads):
        return library, [HEADS]
    return library, list(look.heads)


def _told(look: ShardLook) -> str:
    return f"{', '.join(look.heads) or 'no revision'} (library {look.library})"
