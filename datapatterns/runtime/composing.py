"""A worker for what an application declares."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

from sqlalchemy import Engine

from datapatterns.cqrs import Projections
from datapatterns.runtime.loops import Loop
from datapatterns.runtime.worker import Worker
from datapatterns.telemetry import SILENT, Observer


class HowToWork(TypedDict, total=False):
    """What may be said of a worker.

    Attributes:
        threads: How many pages may be under way at the same time; 2.
        page_events: How many events a page has at most; what suits each projection.
        lease_seconds: How long others wait for a worker that died; as the projections say.
        grace_seconds: How long pages that are under way may take when it is stopped; 10.
        loops: What to do besides, such as `MarkLoop`.
    """

    threads: int
    page_events: int
    lease_seconds: float
    grace_seconds: float
    loops: Sequence[Loop]


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
