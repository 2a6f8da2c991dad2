"""The part of a cluster that tells how its shards are."""

from abc import abstractmethod
from collections.abc import Mapping

from sqlalchemy import Engine

from datapatterns.breaker import Breaker
from datapatterns.sharding.reaching.health import (
    ShardFinding,
    ShardHealth,
    findings_of,
    health_of,
)
from datapatterns.sharding.reaching.standbys import replica_findings
from datapatterns.sharding.reaching.threads import InThreadsOfShards


class WatchedCluster:
    """What a `ShardCluster` can tell about its servers; neither needs a shard map."""

    engines: Mapping[str, Engine]
    _breakers: Mapping[str, Breaker]
    _fan_out: InThreadsOfShards

    def health(self) -> list[ShardHealth]:
        """Return how each shard is, as this process sees it; takes two seconds if one is away."""
        return health_of(self.engines, self._breakers, self._fan_out)

    @abstractmethod
    def _replica_engines(self) -> dict[str, list[Engine]]: ...

    def check(self) -> list[ShardFinding]:
        """Return what about the shards' servers should be mended, with what mends it.

        Whether they can prepare transactions, sort text alike, and have forgotten none that is
        prepared; and whether encodings, time zones and major versions agree. Whether replicas
        answer, are any, replay, and sort as their indexes do. Ask before you use a new server, and
        now and then: `datapatterns doctor` does so with shards.
        """
        replicas = self._replica_engines()
        try:
            found = findings_of(self.engines, self._fan_out)
            return [*found, *replica_findings(replicas, self._fan_out)]
        finally:
            for engine in (each for engines in replicas.values() for each in engines):
                engine.dispose()
