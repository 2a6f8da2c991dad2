"""`datapatterns worker`: run what an application declares, until it is told to stop."""

import time
from typing import TYPE_CHECKING

import click

from datapatterns_cli.invocation import Invocation, pass_invocation
from datapatterns_cli.logs import shown_logs
from datapatterns_cli.shared_options import Command
from datapatterns_cli.worker_metrics import answering_scrapes

if TYPE_CHECKING:
    from datapatterns import DataLayer
    from datapatterns.materialized_view import ViewWorker
    from datapatterns.runtime import HowToWork, IndexLoop, Worker, WorkerTotals


@click.command(cls=Command)
@click.option(
    "--only", "only", multiple=True, metavar="NAME", help="Only this projection, view or index."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="How many pages may be under way at the same time.",
)
@click.option("--once", is_flag=True, help="Apply one page of each segment that is free, and end.")
@click.option(
    "--until-caught-up",
    is_flag=True,
    help="End when all that is in the log now is shown, by whichever worker's work.",
)
@click.option("--page-events", type=click.IntRange(1), help="How many one transaction applies.")
@click.option(
    "--lease-seconds",
    type=click.FloatRange(0, 86_400, min_open=True),
    help="How long others wait for a worker that died.  [default: 30]",
)
@click.option(
    "--grace-seconds",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="How long pages that are under way may take when it is stopped.",
)
@click.option(
    "--view-threads",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="How many views may be refreshed at the same time.",
)
@click.option("--populate-views", is_flag=True, help="Fill views, too, that are not filled.")
@click.option("--publish-mark", is_flag=True, help="Publish the high-water mark, too.")
@click.option(
    "--relay-caches/--no-relay-caches",
    default=None,
    help="Tell Redis of what caches have to forget.  [default: if caches are declared]",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Answer Prometheus there with what is counted and how all stands; 0 for a free port.",
)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen for it; names of tables and read models can be read there.",
)
@pass_invocation
def worker(  # noqa: PLR0913 -- click's options
    invocation: Invocation,
    *,
    only: tuple[str, ...],
    threads: int,
    once: bool,
    until_caught_up: bool,
    page_events: int | None,
    lease_seconds: float | None,
    grace_seconds: float,
    view_threads: int,
    populate_views: bool,
    publish_mark: bool,
    relay_caches: bool | None,
    metrics_port: int | None,
    metrics_host: str,
) -> None:
    """Run what an application declares: move projections on, refresh views that are due.

    And keep index tables of mode async, tell Redis of what its caches have to forget, end
    transactions over shards, and moves of buckets, whose process died.

    Start as many of these as you like. They share the segments and the views among them, and
    take over from those that die. SIGTERM and Ctrl-C end one cleanly: pages and refreshes that
    are under way are finished, or undone when --grace-seconds are over; leases are given back at
    once; the exit code is 0. A second signal ends it at once.

    \b
      datapatterns worker --app shop.data:layer
      datapatterns worker --app shop.data:layer --only sales_by_product --threads 4
      datapatterns worker --app shop.data:layer --until-caught-up --json
      datapatterns worker --app shop.data:layer --metrics-port 9464
    """  # noqa: D301
    if once and until_caught_up:
        raise click.UsageError("give --once or --until-caught-up, not both")
    layer = invocation.layer()
    if not (_has_work(layer) or relay_caches):
        raise click.UsageError(
            "nothing is declared to be run; name the app that has DataLayer(projections=[...],"
            " views=[...], indexes=[...], shards={...}) or keeps what layer.cache() returns: --app"
        )
    how: HowToWork = {
        "threads": threads,
        "grace_seconds": grace_seconds,
        "view_threads": view_threads,
        "populate_views": populate_views,
        **_further(layer, page_events, lease_seconds, publish_mark),
    }
    if relay_caches is not None:
        how["relay_caches"] = relay_caches
    with (
        answering_scrapes(invocation, layer, metrics_host, metrics_port),
        shown_logs(as_json=invocation.output.as_json),
    ):
        work = layer.worker(only, **how)
        began = time.monotonic()
        done = _once(layer, work) if once else _run(layer, work, until_caught_up=until_caught_up)
    seconds = round(time.monotonic() - began, 3)
    told = {"events": done.events, "pages": done.pages}
    if (views := _views_of(work)) is not None:
        told["views_refreshed"] = views.refreshes
        if until_caught_up:
            told["views_refreshed"] += _refresh(layer, views, populate=populate_views)
    if once or until_caught_up:
        _relay_caches(work)
        _catch_up_indexes(work)
    invocation.output.values({**told, "seconds": seconds})
    if once or until_caught_up:
        _raise_troubles(work)


def _has_work(layer: "DataLayer") -> bool:
    declared = (
        layer.projections.declared,
        layer.views.declared,
        layer.indexes.worker().indexes,
        layer.caches,
        layer.shard_engines,
    )
    return any(map(bool, declared))


def _further(
    layer: "DataLayer",
    page_events: int | None,
    lease_seconds: float | None,
    publish_mark: bool,  # noqa: FBT001 -- of the command
) -> "HowToWork":
    """Return what was said at the prompt of what may be left unsaid."""
    how: HowToWork = {}
    if page_events is not None:
        how["page_events"] = page_events
    if lease_seconds is not None:
        how["lease_seconds"] = lease_seconds
    if publish_mark:
        from datapatterns.runtime import MarkLoop  # noqa: PLC0415 -- help must not wait for it

        how["loops"] = [MarkLoop(layer.events, layer.engine)]
    return how


def _raise_troubles(work: "Worker") -> None:
    for error in work.projections.troubles.values():
        raise error
    if (views := _views_of(work)) is not None:
        for error in views.troubles.values():
            raise error
    for loop in _index_loops(work):
        for error in loop.worker.troubles.values():
            raise error


def _views_of(work: "Worker") -> "ViewWorker | None":
    from datapatterns.runtime import ViewLoop  # noqa: PLC0415 -- help must not wait for it

    return next((loop.worker for loop in work.loops if isinstance(loop, ViewLoop)), None)


def _relay_caches(work: "Worker") -> None:
    """Send what has committed by now."""
    from datapatterns.runtime import CacheRelayLoop  # noqa: PLC0415 -- help must not wait for it

    for loop in work.loops:
        if isinstance(loop, CacheRelayLoop):
            loop.step()


def _catch_up_indexes(work: "Worker") -> None:
    """Take in what has been committed by now."""
    for loop in _index_loops(work):
        loop.worker.finish(loop.engine)


def _index_loops(work: "Worker") -> "list[IndexLoop]":
    from datapatterns.runtime import IndexLoop  # noqa: PLC0415 -- help must not wait for it

    return [loop for loop in work.loops if isinstance(loop, IndexLoop)]


def _refresh(layer: "DataLayer", views: "ViewWorker", *, populate: bool) -> int:
    """Let views show all that has been committed by now, but for those on demand; count them."""
    declared = [view for company in views.companies for view in company.views]
    names = [view.name for view in declared if not view.policy.on_demand]
    if not names:
        return 0
    filled = layer.views.populate(layer.engine, names) if populate else {}
    return len(filled) + len(layer.views.refresh(layer.engine, names))


def _once(layer: "DataLayer", work: "Worker") -> "WorkerTotals":
    from datapatterns.runtime import WorkerTotals  # noqa: PLC0415

    try:
        done = work.projections.step(layer.read_engine)
    finally:
        with layer.read_engine.connect() as conn:
            work.projections.leave(conn)
    views = _views_of(work)
    while views is not None and not views.step(layer.engine).pause_seconds:
        pass
    return WorkerTotals(done.events, done.pages)


def _run(layer: "DataLayer", work: "Worker", *, until_caught_up: bool) -> "WorkerTotals":
    from sqlalchemy import Connection  # noqa: PLC0415

    from datapatterns.runtime import stopped_by_signals  # noqa: PLC0415

    target = None
    if until_caught_up:
        with layer.engine.connect().execution_options(isolation_level="READ COMMITTED") as conn:
            target = layer.events.high_water_mark(conn)

    def caught_up(conn: Connection) -> bool:
        if target is None:
            return False
        return set(work.projections.behind(conn, target)) <= work.projections.troubles.keys()

    with stopped_by_signals(work.stop):
        return work.run(until=caught_up)
