"""The same events feed tables and a dashboard; each says how far behind it is, or never is."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute

from datapatterns.cqrs import AnyProjection, BuildProgress, ProjectionProgress, SetProjection
from datapatterns_grocer.chapters.event_store import ring_up
from datapatterns_grocer.model import BasketSize, ProductSales, StoreBaskets
from datapatterns_grocer.projections import (
    DECLARED,
    PROJECTIONS,
    BasketsByStore,
    Dashboard,
    SalesAndScans,
)
from datapatterns_grocer.screen import milliseconds, money
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import seconds
from datapatterns_grocer.truth import Check, compare

PATIENCE_SECONDS = 3_600.0  # a year takes minutes; what is slower than this is stuck


def play(stage: Stage) -> None:
    """Bring both read models up to date, then read what was just written."""
    stage.screen.heading(
        "CQRS read models",
        "Projections follow the log, each event exactly once: tables and a live dashboard.",
    )
    for projection in PROJECTIONS:
        events, took = _catch_up(stage, projection)
        how = "by statements" if issubclass(projection, SetProjection) else "folded"
        stage.screen.say(
            f"{projection.name}: {events:,} events, {how}, {events / took:,.0f} events/s"
        )
    _show(stage)
    _build_the_next_version(stage)
    _keep_inline(stage)
    _read_own_write(stage)


def verify(stage: Stage) -> Iterator[Check]:
    """Compare all read models with the files, and one with a replay of the log."""
    for projection in DECLARED:
        _catch_up(stage, projection)
    yield compare(
        "read model in PostgreSQL: quantity, cents and scans of every product, by version 2",
        derived=_rows(
            stage,
            ProductSales.product_id,
            ProductSales.quantity,
            ProductSales.cents,
            ProductSales.scans,
        ),
        truth=stage.dataset.rows(
            "SELECT product_id, sum(quantity), sum(cents), count(*) FROM sold GROUP BY ALL"
        ),
    )
    yield compare(
        "read model by statements: baskets and cents by size",
        derived=_rows(stage, BasketSize.items, BasketSize.baskets, BasketSize.cents),
        truth=stage.dataset.rows(
            "SELECT items, count(*), sum(cents)::BIGINT FROM (SELECT basket_id, count(*) AS items,"
            " sum(cents) AS cents FROM sold GROUP BY basket_id) GROUP BY items"
        ),
    )
    yield compare(
        "read model inline: baskets of every store",
        derived=_rows(stage, StoreBaskets.store_id, StoreBaskets.baskets),
        truth=stage.dataset.rows(
            "SELECT store_id, count(DISTINCT basket_id) FROM sold GROUP BY ALL"
        ),
    )
    replayed = stage.layer.projections.verify(stage.layer.engine, BasketsByStore)
    yield compare(
        "read model inline: as a replay of the log gives it",
        derived=[(len(replayed.differences),)],
        truth=[(0,)],
    )
    view = stage.layer.projections.view(Dashboard)
    yield compare(
        "read model in Redis: totals",
        derived=sorted((name, int(value)) for name, value in view.hash("totals").items()),
        truth=stage.dataset.rows(
            "UNPIVOT (SELECT count(DISTINCT basket_id) AS baskets, count(*) AS items,"
            " sum(cents)::BIGINT AS cents, sum(coupon_cents)::BIGINT AS coupon_cents FROM sold)"
            " ON COLUMNS(*)"
        ),
    )
    yield compare(
        "read model in Redis: baskets of every store",
        derived=[(int(store), n) for store, n in view.top("baskets_by_store", limit=10_000)],
        truth=stage.dataset.rows(
            "SELECT store_id, count(DISTINCT basket_id) FROM sold GROUP BY ALL"
        ),
    )


def _rows(stage: Stage, *columns: InstrumentedAttribute[int]) -> Sequence[Sequence[int]]:
    with stage.layer.engine.connect() as conn:
        return [tuple(row) for row in conn.execute(select(*columns))]


def _catch_up(stage: Stage, projection: type[AnyProjection]) -> tuple[int, float]:
    engine, projections = stage.layer.engine, stage.layer.projections
    with engine.begin() as conn:
        mark = stage.layer.events.high_water_mark(conn)
        behind = mark - (projections.position(conn, projection) or 0)
    done = 0

    def on_page(progress: ProjectionProgress) -> None:
        nonlocal done
        advance(progress.position - (mark - behind) - done)
        done = progress.position - (mark - behind)

    begun = time.perf_counter()
    with stage.screen.progress(f"projecting {projection.name}", total=behind) as advance:
        progress = projections.catch_up(
            engine, projection, timeout_seconds=PATIENCE_SECONDS, on_page=on_page
        )
    return progress.events, time.perf_counter() - begun


def _show(stage: Stage) -> None:
    view = stage.layer.projections.view(Dashboard)
    totals = view.hash("totals")
    stage.screen.say(
        f"the dashboard: {int(totals['baskets']):,} baskets, {int(totals['items']):,} items,"
        f" {money(int(totals['cents']))} dollars"
    )
    top = view.top("baskets_by_store", limit=5)
    stage.screen.bars({f"store {store}": baskets for store, baskets in top}, "baskets")


def _build_the_next_version(stage: Stage) -> None:
    """Build it beside the one that is read, and let it take its place under a reader's eyes."""
    engine, projections = stage.layer.engine, stage.layer.projections
    with engine.begin() as conn:
        total = stage.layer.events.high_water_mark(conn)
    told: list[BuildProgress] = []

    def on_progress(built: BuildProgress) -> None:
        advance(built.position - (told[-1].position if told else 0))
        told.append(built)

    version = f"version {SalesAndScans.version} of {SalesAndScans.name}"
    with stage.screen.progress(f"building {version}", total=total) as advance:
        projections.rebuild(engine, SalesAndScans, promote=False, on_progress=on_progress)
    stage.screen.say(
        f"{version} was built beside the one that is read: {told[-1].events:,} events,"
        f" {told[-1].events_per_second:,.0f} events/s"
    )
    differences = projections.verify(engine, SalesAndScans).differences
    there = seconds(lambda: projections.promote(engine, SalesAndScans))
    back = seconds(lambda: projections.rollback(engine, SalesAndScans))
    again = seconds(lambda: projections.promote(engine, SalesAndScans))
    stage.screen.say(
        f"{len(differences)} differences to a replay; it took the place in {milliseconds(there)},"
        f" gave it back in {milliseconds(back)}, and took it again in {milliseconds(again)}"
    )


def _keep_inline(stage: Stage) -> None:
    """Let appends keep a read model themselves: it shows in the transaction of the append."""
    engine, projections = stage.layer.engine, stage.layer.projections
    switched = seconds(lambda: projections.make_inline(engine, BasketsByStore))
    stage.screen.say(
        f"{BasketsByStore.name}: switched to inline in {milliseconds(switched)}; from here on each"
        " append keeps it in its own transaction, and a writer that does not is refused"
    )


def _read_own_write(stage: Stage) -> None:
    """A till writes, and its customer looks at the table: wait for the token, not for luck."""
    token = ring_up(stage, stage.live[2])
    engine, projections = stage.layer.engine, stage.layer.projections
    with engine.begin() as conn:
        (status,) = [
            s
            for s in projections.status(conn)
            if (s.name, s.version) == (SalesAndScans.name, SalesAndScans.version)
        ]
    stage.screen.say(
        f"a basket was just paid: the table is {status.positions_behind} events"
        f" and {status.seconds_behind:.3f} s behind, and says so"
    )
    with ThreadPoolExecutor(max_workers=1) as worker:
        running = worker.submit(
            projections.catch_up, engine, SalesAndScans, timeout_seconds=PATIENCE_SECONDS
        )
        waited = seconds(
            lambda: projections.wait(engine, SalesAndScans, token, timeout_seconds=PATIENCE_SECONDS)
        )
        running.result()
    stage.screen.say(f"read-your-writes: the reader waited {milliseconds(waited)} for its token")
