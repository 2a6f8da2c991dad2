"""Compare all that an application derives with what it is derived from, one after the other."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from datapatterns.cache_aside import Cache
from datapatterns.clock import SYSTEM_CLOCK, Clock
from datapatterns.errors import DataPatternsError
from datapatterns.index_table import ShardIndexes
from datapatterns.overview.comparing import (
    Compared,
    LeftOut,
    cache_compared,
    chain_compared,
    copies_compared,
    declared_where,
    index_compared,
    placement_compared,
    projection_compared,
    shard_index_compared,
    view_compared,
)
from datapatterns.overview.databases import server_standing, told
from datapatterns.overview.gathering import Declared
from datapatterns.overview.proof import Proof, Verdict
from datapatterns.overview.standing import Concern
from datapatterns.settings import MAIN, READ_MODELS
from datapatterns.sharding import ShardCluster

ENTRIES_MAX = 1_000
"""How many entries of each cache are compared."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing to be proven.

    Attributes:
        pattern: What it is, as in `Proof`.
        name: Its name.
        database: Where it is.
        compare: Compares it.
    """

    pattern: str
    name: str
    database: str
    compare: Callable[[], Compared | LeftOut]

    @property
    def is_about(self) -> tuple[str, str, str]:
        """What tells it from all others of an application."""
        return self.pattern, self.name, self.database


def claims(
    declared: Declared, caches: Mapping[str, Cache], *, sample: float | None = None
) -> Iterator[Claim | Proof]:
    """Yield what there is to be proven; and at once a proof of what cannot be asked.

    Args:
        declared: What the application declares.
        caches: Its caches by name; those with a cached function are compared.
        sample: Only this share of the rows of views and read models, such as 0.01, or as an
            integer about how many; all of them unless given.
    """
    usable = []
    for name, engine in declared.engines.items():
        server = server_standing(engine, name, schema=declared.schema)
        if server.concern is Concern.FINE:
            usable.append(name)
        else:
            reason = server.reason or server.state
            yield _unknown("server", name, name, reason, server.advice)
    if MAIN in usable:
        yield from _of_main(declared, sample)
    if _models(declared) in usable:
        yield from _of_projections(declared, sample)
    for name in usable:
        if name != READ_MODELS:
            yield from _of_indexes(declared, name)
    yield from _of_caches(caches)
    for cluster in declared.clusters:
        yield from _of_shards(cluster)


def prove(wanted: Iterable[Claim | Proof], *, clock: Clock = SYSTEM_CLOCK) -> Iterator[Proof]:
    """Compare one after the other, and yield each as soon as it is known.

    What cannot be asked is one of the answers, and keeps nobody from proving the rest.
    """
    for claim in wanted:
        if isinstance(claim, Proof):
            yield claim
            continue
        began = clock.monotonic()
        pattern, name, database = claim.is_about
        try:
            found = claim.compare()
        except (DataPatternsError, SQLAlchemyError) as error:
            yield _unknown(pattern, name, database, told(error), None)
            continue
        seconds = clock.monotonic() - began
        if isinstance(found, LeftOut):
            yield Proof(
                pattern=pattern,
                name=name,
                database=database,
                verdict=Verdict.LEFT_OUT,
                seconds=seconds,
                reason=found.reason,
            )
            continue
        wrong = found.differing > 0
        yield Proof(
            pattern=pattern,
            name=name,
            database=database,
            verdict=Verdict.WRONG if wrong else Verdict.RIGHT,
            compared=found.rows,
            differing=found.differing,
            seconds=seconds,
            reason=found.reason if wrong else None,
            advice=found.advice if wrong else None,
        )


def _of_main(declared: Declared, sample: float | None) -> Iterator[Claim]:
    engine = declared.engines[MAIN]
    for view in declared.views.ordered:
        compare = partial(view_compared, engine, declared.views, view, sample=sample)
        yield Claim("view", view.name, MAIN, compare)
    store = declared.projections.store
    yield Claim("event chain", "sealed events", MAIN, partial(chain_compared, engine, store))


def _models(declared: Declared) -> str:
    return READ_MODELS if READ_MODELS in declared.engines else MAIN


def _of_projections(declared: Declared, sample: float | None) -> Iterator[Claim]:
    models, projections = _models(declared), declared.projections
    ask = partial(projection_compared, declared.engines[models], projections, sample=sample)
    for projection in projections.declared:
        title = f"{projection.name} version {projection.version}"
        yield Claim("projection", title, models, partial(ask, projection))


def _of_indexes(declared: Declared, database: str) -> Iterator[Claim | Proof]:
    engine, indexes = declared.engines[database], declared.indexes
    try:
        names = declared_where(engine, database, indexes)
    except (DataPatternsError, SQLAlchemyError) as error:
        yield _unknown("index", "all", database, told(error), None)
        return
    for name in names:
        compare = partial(index_compared, engine, indexes, name, database=database)
        yield Claim("index", name, database, compare)


def _of_caches(caches: Mapping[str, Cache]) -> Iterator[Claim]:
    for name, cache in caches.items():
        if cache.function is not None:
            compare = partial(cache_compared, name, cache.function, limit=ENTRIES_MAX)
            yield Claim("cache", name, "redis", compare)


def _of_shards(cluster: ShardCluster) -> Iterator[Claim]:
    for table in cluster.broadcast_tables:
        compare = partial(copies_compared, cluster, table)
        yield Claim("broadcast table", table.fullname, "shards", compare)
    yield Claim("sharded table", "all", "shards", partial(placement_compared, cluster))
    for name in ShardIndexes.of(cluster).indexes:
        yield Claim("index", name, "shards", partial(shard_index_compared, cluster, name))


def _unknown(pattern: str, name: str, database: str, reason: str, advice: str | None) -> Proof:
    return Proof(
        pattern=pattern,
        name=name,
        database=database,
        verdict=Verdict.UNKNOWN,
        reason=reason,
        advice=advice,
    )
