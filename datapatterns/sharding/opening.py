"""Engines and what sessions share, made from the settings of a cluster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine

from datapatterns.breaker import Breaker
from datapatterns.clock import Clock
from datapatterns.sharding.access import ShardAccess
from datapatterns.sharding.broadcasting.copies import CopyList
from datapatterns.sharding.broadcasting.guarding import guard_copies
from datapatterns.sharding.companions import NO_COMPANIONS, Companion, Companions
from datapatterns.sharding.definition import EntityGroup
from datapatterns.sharding.engines import driver_engine, shard_engine
from datapatterns.sharding.fan_out import FanOut
from datapatterns.sharding.maps.late_router import LateRouter
from datapatterns.sharding.maps.router import Router
from datapatterns.sharding.reaching.circuits import watch_connecting
from datapatterns.sharding.reaching.replicas import Replicas
from datapatterns.sharding.references.declared import NO_REFERENCES, References
from datapatterns.sharding.routing.footprints import Footprints
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.scatter.combining import Combiner
from datapatterns.sharding.seeing.load_watch import LoadWatch

if TYPE_CHECKING:
    from datapatterns.sharding.sessions.async_shards import AsyncShards


@dataclass(frozen=True, slots=True)
class Opening:
    """What a `ShardCluster` was told, as far as connections need it."""

    control: URL
    shards: Mapping[str, URL]
    groups: Sequence[EntityGroup]
    placements: Placements
    schema: str
    poll_seconds: float
    merge_rows_max: int
    engine_options: Mapping[str, Any] | None
    check: Callable[[str, Any], None] | None
    clock: Clock
    breakers: Mapping[str, Breaker]
    replica_urls: Mapping[str, Sequence[URL]]
    citus: frozenset[str] = frozenset()
    companions: tuple[Companion, ...] = ()
    references: References = NO_REFERENCES

    def engines(self, *, asynchronous: bool = False) -> dict[str, Engine]:
        """Return an engine for each shard."""
        return {
            shard_id: self._engine(
                shard_id, url, self.breakers[shard_id], asynchronous=asynchronous
            )
            for shard_id, url in self.shards.items()
        }

    def replicas(
        self, engines: Mapping[str, Engine], router: Router, *, asynchronous: bool = False
    ) -> Replicas:
        """Return what chooses replicas of shards that ``engines`` are of."""
        found = self.replica_engines(asynchronous=asynchronous)
        return Replicas(engines, found, router.maps, self.clock)

    def replica_engines(self, *, asynchronous: bool = False) -> dict[str, list[Engine]]:
        """Return engines for the replicas of each shard."""
        return {
            shard_id: [
                self._engine(
                    shard_id, url, Breaker(self.clock.monotonic), asynchronous=asynchronous
                )
                for url in urls
            ]
            for shard_id, urls in self.replica_urls.items()
        }

    def _engine(self, shard_id: str, url: URL, breaker: Breaker, *, asynchronous: bool) -> Engine:
        engine = shard_engine(
            shard_id,
            url,
            schema=self.schema,
            engine_options=self.engine_options,
            check=self.check,
            asynchronous=asynchronous,
        )
        return watch_connecting(guard_copies(engine, self.placements), shard_id, breaker)

    def router_options(self) -> dict[str, Any]:
        """Return what a `Router` is told beside its connection."""
        return {
            "groups": self.groups,
            "shards": list(self.shards),
            "schema": self.schema,
            "poll_seconds": self.poll_seconds,
            "clock": self.clock,
        }

    def access(  # noqa: PLR0913 -- what is shared, all by name
        self,
        *,
        control: Engine,
        engines: Mapping[str, Engine],
        router: Router,
        combiner: Combiner,
        fan_out: FanOut,
        load: LoadWatch | None,
        asynchronous: bool = False,
    ) -> ShardAccess:
        """Return what sessions share."""
        return ShardAccess(
            engines,
            router,
            self.placements,
            Footprints(self.placements),
            combiner,
            fan_out,
            self.schema,
            self.merge_rows_max,
            CopyList(control, engines, schema=self.schema),
            self.replicas(engines, router, asynchronous=asynchronous),
            load,
            citus=self.citus,
            companions=self.with_side_engines(asynchronous=asynchronous),
            references=self.references,
        )

    def with_side_engines(self, *, asynchronous: bool = False) -> Companions:
        """Return the companions with connections of their own, which references need, too."""
        if not self.companions and not self.references:
            return NO_COMPANIONS
        return Companions(self.companions, self.engines(asynchronous=asynchronous))

    def for_asyncio(self, *, load: LoadWatch | None) -> "AsyncShards":
        """Return the same for one event loop."""
        from datapatterns.sharding.fan_out_async import InTasks  # noqa: PLC0415 -- needs an extra
        from datapatterns.sharding.sessions.async_shards import AsyncShards  # noqa: PLC0415

        control = driver_engine(self.control, asynchronous=True, pool_size=1)
        engines = self.engines(asynchronous=True)
        access = self.access(
            control=control,
            engines=engines,
            router=LateRouter(control=control, **self.router_options()),
            combiner=Combiner(engines),
            fan_out=InTasks(),
            load=load,
            asynchronous=True,
        )
        return AsyncShards(control, access)
