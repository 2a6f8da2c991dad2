"""What sessions and connections of one cluster share."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from datapatterns.errors import StaleShardMapError
from datapatterns.sharding.broadcasting.copies import CopyList
from datapatterns.sharding.companions import NO_COMPANIONS, Companions
from datapatterns.sharding.fan_out import FanOut
from datapatterns.sharding.maps.ownership import failed_shard, shard_error
from datapatterns.sharding.maps.router import Router
from datapatterns.sharding.reaching.replicas import NO_REPLICAS, Replicas
from datapatterns.sharding.references.declared import NO_REFERENCES, References
from datapatterns.sharding.routing.footprints import Footprints
from datapatterns.sharding.routing.placements import Placements
from datapatterns.sharding.routing.prepared_gets import PreparedGets
from datapatterns.sharding.scatter.agreeing import TextOrder
from datapatterns.sharding.scatter.combining import Combiner
from datapatterns.sharding.scatter.plan_cache import PlanCache
from datapatterns.sharding.seeing.load_watch import LoadWatch


@dataclass(frozen=True, slots=True)
class ShardAccess:
    """The way to the shards.

    Attributes:
        engines: One for each shard.
        router: Which shard holds a key.
        placements: Which table has which shard key.
        footprints: What statements read.
        combiner: Connections for what PostgreSQL finishes.
        fan_out: Asks several shards at once.
        schema: Where the library's tables live.
        merge_rows_max: How many rows may be merged for one statement.
        copies: Which shards hold copies of broadcast tables.
        plans: How statements of several shards are answered.
        gets: How objects are loaded by their primary key.
        text_order: Whether shards order text alike.
        replicas: Where shards may be read, too.
        load: What counts statements, if that is wanted.
        citus: The shards that are coordinators of Citus.
        companions: What is kept beside the rows.
        references: Which rows refer to rows of other shards.
    """

    engines: Mapping[str, Engine]
    router: Router
    placements: Placements
    footprints: Footprints
    combiner: Combiner
    fan_out: FanOut
    schema: str
    merge_rows_max: int
    copies: CopyList
    replicas: Replicas = NO_REPLICAS
    load: LoadWatch | None = None
    plans: PlanCache = field(default_factory=PlanCache)
    gets: PreparedGets = field(default_factory=PreparedGets)
    text_order: TextOrder = field(default_factory=TextOrder)
    citus: frozenset[str] = frozenset()
    companions: Companions = NO_COMPANIONS
    references: References = NO_REFERENCES

    def asking(self, shard_id: str) -> AbstractContextManager[None]:
        """Name the shard in what goes wrong, and read the map again if that was old.

        Raises:
            ShardUnavailableError: It does not answer.
            StaleShardMapError: It owns other buckets than the map says.
        """
        return _Asking(self.router, shard_id)

    @contextmanager
    def asking_several(self) -> Iterator[None]:
        """Do as `asking`, of whichever shard it is on which something goes wrong.

        Raises:
            ShardUnavailableError: It does not answer.
            StaleShardMapError: It owns other buckets than the map says.
        """
        try:
            yield
        except DBAPIError as error:
            if (shard_id := failed_shard(error)) is None:
                raise
            with self.asking(shard_id):
                raise

    def learning(self) -> AbstractContextManager[None]:
        """Read the map again if it was old, so that a repeated transaction goes right."""
        return _Asking(self.router, None)


class _Asking:
    """Costs next to nothing while nothing goes wrong: a statement passes several of them."""

    __slots__ = ("_router", "_shard_id")

    def __init__(self, router: Router, shard_id: str | None) -> None:
        self._router = router
        self._shard_id = shard_id

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _t: object
    ) -> None:
        if error is None:
            return
        found = None if self._shard_id is None else shard_error(error, self._shard_id)
        if isinstance(found or error, StaleShardMapError):
            self._router.refresh()
        if found is not None:
            raise found from error
