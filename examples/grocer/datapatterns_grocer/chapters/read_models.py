"""The same events feed a table and a dashboard; each says how far behind it is."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from datapatterns.cqrs import Projection, ProjectionProgress, RedisChanges, RedisProjection, on
from datapatterns.event_sourcing import RecordedEvent
from datapatterns_grocer.chapters.event_store import ring_up
from datapatterns_grocer.events import BasketPaid, BasketStarted, CouponApplied, ItemScanned
from datapatterns_grocer.model import ProductSales
from datapatterns_grocer.screen import milliseconds, money
from datapatterns_grocer.stage import Stage
from datapatterns_grocer.stopwatch import seconds
from datapatterns_grocer.truth import Check, compare

PATIENCE_SECONDS = 3_600.0  # a year takes minutes; what is slower than this is stuck


class SalesByProduct(Projection, into=ProductSales, version=1):
    """How much of each product was sold; a row of a plain table for each."""

    @on(ItemScanned, key=lambda e, _meta: e.product_id)
    def _(self, row: ProductSales, e: ItemScanned, _meta: RecordedEvent) -> None:
        row.quantity += e.quantity
        row.cents += e.cents


class Dashboard(RedisProjection, version=1):
    """What the manager's screen shows, live."""

    @on(BasketStarted)
    def _(self, changes: RedisChanges, e: BasketStarted, _meta: RecordedEvent) -> None:
        changes.add_score("baskets_by_store", e.store_id)

    @on(CouponApplied)
    def _(self, changes: RedisChanges, e: CouponApplied, _meta: RecordedEvent) -> None:
        changes.increment("totals", "coupon_cents", e.cents)

    @on(BasketPaid)
    def _(self, changes: RedisChanges, e: BasketPaid, _meta: RecordedEvent) -> None:
        changes.increment("totals", "baskets")
        changes.increment("totals", "items", e.items)
        changes.increment("totals", "cents", e.cents)


def play(stage: Stage) -> None:
    """Bring both read models up to date, then read what was just written."""
    stage.screen.heading(
        "CQRS read models",
        "Two projections follow the log, each event exactly once: a table and a live dashboard.",
    )
    for projection in (SalesByProduct, Dashboard):
        events, took = _catch_up(stage, projection)
        stage.screen.say(f"{projection.name}: {events:,} events, {events / took:,.0f} events/s")
    _show(stage)
    _read_own_write(stage)


def verify(stage: Stage) -> Iterator[Check]:
    """Compare both read models with the files."""
    for projection in (SalesByProduct, Dashboard):
        _catch_up(stage, projection)
    columns = (ProductSales.product_id, ProductSales.quantity, ProductSales.cents)
    with stage.layer.engine.connect() as conn:
        sales = conn.execute(select(*columns)).all()
    yield compare(
        "read model in PostgreSQL: quantity and cents of every product",
        derived=sales,
        truth=stage.dataset.rows(
            "SELECT product_id, sum(quantity), sum(cents) FROM sold GROUP BY ALL"
        ),
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


def _catch_up(stage: Stage, projection: type[Projection | RedisProjection]) -> tuple[int, float]:
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


def _read_own_write(stage: Stage) -> None:
    """A till writes, and its customer looks at the table: wait for the token, not for luck."""
    token = ring_up(stage, stage.live[2])
    engine, projections = stage.layer.engine, stage.layer.projections
    with engine.begin() as conn:
        (status,) = [s for s in projections.status(conn) if s.name == SalesByProduct.name]
    stage.screen.say(
        f"a basket was just paid: the table is {status.positions_behind} events"
        f" and {status.seconds_behind:.3f} s behind, and says so"
    )
    with ThreadPoolExecutor(max_workers=1) as worker:
        running = worker.submit(
            projections.catch_up, engine, SalesByProduct, timeout_seconds=PATIENCE_SECONDS
        )
        waited = seconds(
            lambda: projections.wait(
                engine, SalesByProduct, token, timeout_seconds=PATIENCE_SECONDS
            )
        )
        running.result()
    stage.screen.say(f"read-your-writes: the reader waited {milliseconds(waited)} for its token")
