"""Ask everything that an application declares how it stands, whatever part of it is away."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from datapatterns.cache_aside import CacheRelay
from datapatterns.cqrs import Projections
from datapatterns.errors import DataPatternsError
from datapatterns.index_table import Indexes
from datapatterns.materialized_view import Views
from datapatterns.overview.databases import asked, server_standing, unreachable
from datapatterns.overview.of_caches import cache_standings
from datapatterns.overview.of_change_logs import change_log_standings
from datapatterns.overview.of_indexes import index_standings, shard_index_standings
from datapatterns.overview.of_projections import log_standings, projection_standings
from datapatterns.overview.of_shards import move_standings, shard_standings
from datapatterns.overview.of_views import view_standings
from datapatterns.overview.standing import LATE_SECONDS, Concern, Standing
from datapatterns.settings import MAIN, READ_MODELS
from datapatterns.sharding import ShardCluster
from datapatterns.sql.metadata import DEFAULT_SCHEMA

COUNTED_ROWS_MAX = 10_000
"""How far pending changes are counted: enough to tell many from few, and quick."""

Ask = Callable[[Connection], list[Standing]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What an application has declared, and where it is.

    Attributes:
        engines: The databases by name: ``main``, ``read_models``, and shards.
        schema: Where the library's tables live in each.
        projections: Its read models.
        views: Its materialized views.
        indexes: Its index tables.
        relay: What tells Redis of writes; None without a Redis.
        clusters: Its shards, as far as it has opened them.
    """

    engines: Mapping[str, Engine]
    projections: Projections
    views: Views
    indexes: Indexes
    schema: str = DEFAULT_SCHEMA
    relay: CacheRelay | None = None
    clusters: Sequence[ShardCluster] = field(default=())


def gather(
    declared: Declared,
    *,
    late_seconds: float = LATE_SECONDS,
    limit: int = COUNTED_ROWS_MAX,
) -> list[Standing]:
    """Return how everything stands: servers first, then what is derived on each.

    What cannot be asked is one of the answers, and keeps nobody from asking the rest.

    Args:
        declared: What to ask.
        late_seconds: After how long what is behind is wrong, unless its declaration says.
        limit: How far to count changes that are pending.
    """
    standings = [
        server_standing(engine, name, schema=declared.schema)
        for name, engine in declared.engines.items()
    ]
    usable = {one.name for one in standings if one.concern is Concern.FINE}
    for name, ask in _questions(declared, late_seconds, limit):
        if name in usable:
            standings += _answers(name, partial(asked, declared.engines[name], name, ask))
    if declared.relay is not None and MAIN in usable:
        ask_relay = partial(cache_standings, declared.relay, late_seconds=late_seconds)
        standings += _answers("redis", ask_relay)
    for cluster in declared.clusters:
        standings += _answers("shards", partial(shard_standings, cluster))
        standings += _answers("shard map", partial(move_standings, cluster))
        standings += _answers("shards", partial(shard_index_standings, cluster))
    return standings


def _questions(declared: Declared, late_seconds: float, limit: int) -> Iterator[tuple[str, Ask]]:
    schema, projections = declared.schema, declared.projections
    models = READ_MODELS if READ_MODELS in declared.engines else MAIN
    yield MAIN, partial(log_standings, store=projections.store)
    yield (
        MAIN,
        partial(change_log_standings, schema=schema, late_seconds=late_seconds, limit=limit),
    )
    yield MAIN, partial(view_standings, views=declared.views, limit=limit)
    yield (
        models,
        partial(
            projection_standings,
            projections=projections,
            database=models,
            late_seconds=late_seconds,
        ),
    )
    for name in declared.engines:
        if name != READ_MODELS:
            yield (
                name,
                partial(
                    index_standings,
                    indexes=declared.indexes,
                    database=name,
                    late_seconds=late_seconds,
                ),
            )


def _answers(name: str, ask: Callable[[], list[Standing]]) -> list[Standing]:
    try:
        return ask()
    except (DataPatternsError, SQLAlchemyError) as error:
        return [unreachable(name, name, error)]
