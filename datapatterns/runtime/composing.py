"""A worker for what an application declares."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypedDict, Unpack

from sqlalchemy import Engine

from datapatterns.cqrs import Projections
from datapatterns.index_table import Indexes
from datapatterns.materialized_view import Views
from datapatterns.runtime.loops import CollectLoop, IndexLoop, Loop, ViewLoop
from datapatterns.runtime.worker import Worker
from datapatterns.telemetry import SILENT, Observer

VIEW_TIMEOUT_SECONDS: Final = 600.0
"""A refresh that takes longer holds up the others of its thread; let it be declared."""


class HowToWork(TypedDict, total=False):
    """What may be said of a worker.

    Attributes:
        threads: How many pages may be under way at the same time; 2.
        page_events: How many events a page has at most; what suits each projection.
        lease_seconds: How long others wait for a worker that died; as the projections say.
        grace_seconds: How long pages that are under way may take when it is stopped; 10.
        loops: What to do besides, such as `MarkLoop`.
        view_threads: How many views may be refreshed at the same time; 1.
        populate_views: Whether views that are not filled are; not unless it is said.
        view_timeout_seconds: After so long a statement of a refresh is given up, of a view that
            is declared without a time of its own; 600.
        relay_caches: Whether invalidations are sent to Redis; if caches are declared.
        recover_shards: Whether transactions over several shards are ended whose process died; if
            shards are declared.
        finish_moves: Whether moves of buckets are finished whose process died at their cut; of
            the clusters that `DataLayer.cluster` has returned and somebody keeps.
        sweep_indexes: Whether index tables over shards of those clusters are swept, once an hour.
    """

    threads: int
    page_events: int
    lease_seconds: float
    grace_seconds: float
    loops: Sequence[Loop]
    view_threads: int
    populate_views: bool
    view_timeout_seconds: float
    relay_caches: bool
    recover_shards: bool
    finish_moves: bool
    sweep_indexes: bool


def worker_for(
    engine: Engine,
    projections: Projections,
    only: Sequence[str] = (),
    observer: Observer = SILENT,
    **how: Unpack[HowToWork],
) -> Worker:
    """Return a worker for what ``projections`` declare; any number of processes may `run` one.

    Args:
        engine: Where events, read models and leases are.
        projections: What is declared.
        only: Names of which all declared versions are meant; all unless given.
        observer: Is told of events, pages and failures.
        how: See `HowToWork`.

    Raises:
        ProjectionDefinitionError: A name of ``only`` is not declared.
        ValueError: There are no threads, or a time cannot be kept.
    """
    if "lease_seconds" in how:
        projections = replace(projections, lease_seconds=how["lease_seconds"])
    wanted = {projections.find(name).name for name in only}
    declared = [one for one in projections.declared if not wanted or one.name in wanted]
    return Worker(
        engine,
        projections.worker(declared, page_events=how.get("page_events"), observer=observer),
        how.get("loops", ()),
        threads=how.get("threads", 2),
        grace_seconds=how.get("grace_seconds", 10.0),
    )


def view_loops(
    engine: Engine,
    views: Views,
    only: Sequence[str] = (),
    observer: Observer = SILENT,
    **how: Unpack[HowToWork],
) -> list[Loop]:
    """Return the loops that refresh ``views`` when they are due, and tidy the change log.

    Args:
        engine: Where the views are.
        views: What is declared; without any there is nothing to do.
        only: Names, if not all are meant.
        observer: Is told of refreshes and failures.
        how: See `HowToWork`.

    Raises:
        ValueError: There are no threads.
        ViewUndeclaredError: A name of ``only`` is not declared.
    """
    if (threads := how.get("view_threads", 1)) < 1:
        raise ValueError(f"{threads} threads refresh nothing; allow at least 1")
    if not views.declared:
        return []
    worker = views.worker(
        only,
        populate=how.get("populate_views", False),
        timeout_seconds=how.get("view_timeout_seconds", VIEW_TIMEOUT_SECONDS),
        observer=observer,
    )
    refreshing = [ViewLoop(worker, engine, f"refresher of views {n}") for n in range(threads)]
    return [*refreshing, CollectLoop(engine, views.schema)]


def index_loops(
    engines: Mapping[str, Engine],
    indexes: Indexes,
    only: Sequence[str] = (),
    observer: Observer = SILENT,
) -> list[Loop]:
    """Return the loops that keep index tables of mode ``async``, one for each database.

    Logged changes are deleted by another one, which `view_loops` returns for the main database.

    Args:
        engines: The databases, by name; where an index was not created, it is passed over.
        indexes: What is declared; without any of that mode there is nothing to do.
        only: Names, if not all are meant.
        observer: Is told of changes that were taken in, and how far indexes are behind.

    Raises:
        IndexUndeclaredError: A name of ``only`` is not declared.
    """
    if not indexes.worker(only).indexes:
        return []
    return [
        IndexLoop(indexes.worker(only, observer=observer), engine, f"keeper of indexes in {name}")
        for name, engine in engines.items()
    ]
